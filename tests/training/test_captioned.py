"""Folders of captioned pictures: three places for captions, one rule for a folder, plain words for what is wrong."""

import json

import pytest
from PIL import Image

import undertow
from tests.services import pipeline_folder
from undertow.checkpoints.read.model_loading import load_model
from undertow.errors import DataError, InvalidInput
from undertow.training.captioned import Crop, caption_notes, load_captioned
from undertow.training.captions import caption_of_name


def save(folder, name, color=(255, 0, 0), size=(16, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(folder / name)


def write(folder, text, *names):
    for name in names:
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, "red_apple-01.png")
    save(tmp_path, "blue plum 2.jpg", (0, 0, 255))
    return tmp_path


def captions(folder):
    pictures = load_captioned(folder, size=8)
    # The color says which picture it is.
    return {
        pixel.argmax().item(): text for pixel, text in zip(pictures.pixels[:, :, 4, 4], pictures.captions, strict=True)
    }


def test_names_are_captions_where_nothing_else_is(folder):
    assert captions(folder) == {0: "red apple", 2: "blue plum"}


@pytest.mark.parametrize(
    ("stem", "caption"),
    [("red_apple-03", "red apple"), ("owl (2)", "owl"), ("K2 at dawn", "K2 at dawn"), ("IMG_20", "IMG"), ("0007", "")],
)
def test_a_name_says_its_words_without_the_number_behind_them(stem, caption):
    assert caption_of_name(stem) == caption


def test_text_files_come_before_names(folder):
    (folder / "red_apple-01.txt").write_text("a ripe\napple  \n", encoding="utf-8")
    (folder / "blue plum 2.txt").write_text("\ufeffa plum", encoding="utf-8")
    assert captions(folder) == {0: "a ripe apple", 2: "a plum"}


def test_sd_scripts_caption_files_are_read(folder):
    """Its `caption_extension` is .caption unless it is told otherwise (library/train_util.py)."""
    write(folder, "a ripe apple", "red_apple-01.caption")
    write(folder, "a plum", "blue plum 2.caption")
    assert captions(folder) == {0: "a ripe apple", 2: "a plum"}
    assert load_captioned(folder, size=8).rule == "from NAME.caption beside them"
    write(folder, "x", "red_apple-01.txt")
    with pytest.raises(DataError, match=r"captions in two places: 1 NAME\.txt and 2 NAME\.caption; keep one kind"):
        load_captioned(folder, size=8)


@pytest.mark.parametrize("name", ["red_apple-01.json", "red_apple-01.tags", "red_apple-01.png.txt", "metadata.csv"])
def test_files_that_look_like_captions_are_not_passed_over(folder, name):
    write(folder, "a ripe apple", name)
    with pytest.raises(DataError, match=rf"captions would be the files' names, and {name} would not be read; rename"):
        load_captioned(folder, size=8)


def test_what_else_lies_beside_pictures_is_none_of_them(folder):
    """Such as the latents that sd-scripts keeps."""
    write(folder, "x", "red_apple-01.npz", "README.txt", "README.md")
    assert captions(folder) == {0: "red apple", 2: "blue plum"}


def test_captions_without_a_picture_are_told(folder):
    """A picture in a format that is not read, or lost: its caption is no error, and nobody should count on it."""
    write(folder, "a caption", "red_apple-01.txt", "blue plum 2.txt")
    model = load_model(pipeline_folder("sd1"))
    assert len(caption_notes(model, load_captioned(folder, size=8))) == 1
    write(folder, "a caption", "lost.txt", "raw.txt")
    note = caption_notes(model, load_captioned(folder, size=8))[1]
    assert note == "2 captions have no picture beside them and are not used: lost.txt, raw.txt"


def test_it_is_said_where_captions_are_from_and_what_a_small_model_never_learned(folder):
    pictures = load_captioned(folder, size=8)
    emoji = undertow.load("emoji").model
    first, unknown = caption_notes(emoji, pictures)
    assert first == "2 captions from the files' names, such as 'blue plum'"
    assert unknown == emoji.text.vocabulary.note(["blue plum"])
    assert "'plum'" in unknown
    few = load_model(pipeline_folder("sd1"))
    assert caption_notes(few, pictures) == [first], "a model without a list of words knows all"


def test_metadata_comes_before_text_files_and_may_name_sub_folders(folder):
    (folder / "red_apple-01.txt").write_text("not this")
    save(folder / "more", "x.png", (0, 255, 0))
    lines = [
        {"file_name": "red_apple-01.png", "text": "one"},
        {"file_name": "more/x.png", "text": "two"},
        {"file_name": "blue plum 2.jpg", "text": "three", "other": 1},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert captions(folder) == {0: "one", 1: "two", 2: "three"}


def test_a_crop_says_where_the_square_was(tmp_path):
    save(tmp_path, "wide.png", size=(64, 16))
    save(tmp_path, "tall.png", size=(20, 40))
    pictures = load_captioned(tmp_path, size=8)
    assert pictures.crops == (Crop(height=40, width=20, top=4, left=0), Crop(height=16, width=64, top=0, left=12))
    assert pictures.size == 8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: write(folder, "x", "red_apple-01.txt"), r"plum 2\.jpg has no caption: 1 of 2 .* NAME\.txt"),
        (lambda folder: write(folder, " ", "red_apple-01.txt", "blue plum 2.txt"), "has no caption"),
        (lambda folder: save(folder, "0007.png"), r"0007\.png says nothing: .* NAME\.txt and no NAME\.caption"),
        (lambda folder: (folder / "b.png").write_text("no"), r"1 of 3 pictures cannot be read: b\.png \("),
        (lambda folder: (folder / "metadata.jsonl").write_text("{}"), "line 1 has no file_name and text"),
        (lambda folder: (folder / "metadata.jsonl").write_text("\n{"), "line 2 is not JSON"),
        (lambda folder: (folder / "metadata.jsonl").write_text(""), "it lists no picture"),
        (lambda folder: (folder / "metadata.jsonl").write_bytes(b"\xff"), "not UTF-8"),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "x"}'),
            r"line 1 names c\.png, which is not there",
        ),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "red_apple-01.png", "text": "x"}'),
            r"blue plum 2\.jpg has no caption: its text in metadata\.jsonl",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said(folder, change, problem):
    change(folder)
    with pytest.raises(DataError, match=problem):
        load_captioned(folder, size=8)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_captioned(tmp_path / "nowhere", size=8)
    with pytest.raises(DataError, match=r"no pictures in it .*add some"):
        load_captioned(tmp_path, size=8)
    save(tmp_path / "class", "1.png")
    with pytest.raises(DataError, match="into the folder itself"):
        load_captioned(tmp_path, size=8)
    with pytest.raises(InvalidInput, match="size is 4"):
        load_captioned(tmp_path, size=4)
