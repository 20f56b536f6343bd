"""Names of picture files: a template fills them, an ending chooses the format, and nothing that exists is replaced."""

import re
from pathlib import Path

import pytest

from undertow.errors import InvalidInput
from undertow.pictures.names import FIGURES, FORMATS, PicturePlace, is_file_name, require_picture_file

APPLE = {
    "seed": 7,
    "prompt": "red apple, on a/the ../table: \u82f9\u679c",
    "negative": "",
    "model": "emoji",
    "sampler": "euler",
    "schedule": "karras",
    "steps": 20,
    "guidance": 5.0,
    "width": 64,
    "height": 48,
    "index": 1,
}


def written(place: PicturePlace, **fields) -> Path:
    """The path that one picture gets, relative to the folder, with a byte in it as a picture would have."""
    with place.taken(APPLE | fields) as path:
        path.write_bytes(b"x")
    return path.relative_to(place.folder)


@pytest.mark.parametrize("folder", ["runs/v1.5", "2024.11.28", "sd_xl_base_1.0", "model.v8", "o.bmp"])
def test_a_folder_keeps_its_name(folder, tmp_path):
    if folder == "o.bmp":
        (tmp_path / folder).mkdir()
    place = PicturePlace.of(tmp_path / folder)
    assert place.folder == tmp_path / folder
    assert str(written(place)) == "7.png"


@pytest.mark.parametrize("name", ["o.png", "o.jpg", "O.JPEG", "runs/v1.5/pic.webp"])
def test_a_file_is_written_as_asked(name, tmp_path):
    place = PicturePlace.of(tmp_path / name)
    assert place.folder / written(place) == tmp_path / name


def test_several_pictures_of_one_file_name_are_counted(tmp_path):
    place = PicturePlace.of(tmp_path / "apple.jpg", count=2)
    assert [str(written(place, index=index)) for index in (1, 2)] == ["apple-1.jpg", "apple-2.jpg"]


@pytest.mark.parametrize("name", ["o.bmp", "o.gif", "o.tiff", "prev.txt", "o.mp4"])
def test_files_of_other_kinds_are_refused(name, tmp_path):
    with pytest.raises(InvalidInput, match=re.escape("a folder, or a file that ends in .png, .jpg, .jpeg or .webp")):
        PicturePlace.of(tmp_path / name)


def test_nothing_that_exists_is_replaced(tmp_path):
    place = PicturePlace.of(tmp_path)
    assert [str(written(place)) for _ in range(3)] == ["7.png", "7-2.png", "7-3.png"]
    with pytest.raises(InvalidInput, match="a file that is not there yet; allow it to be replaced"):
        PicturePlace.of(tmp_path / "7.png")
    (tmp_path / "apple-2.png").touch()
    with pytest.raises(InvalidInput, match=re.escape("apple-2.png")):
        PicturePlace.of(tmp_path / "apple.png", count=3)


def test_what_is_there_is_replaced_when_that_is_asked_for(tmp_path):
    place = PicturePlace.of(tmp_path, overwrite=True)
    assert [str(written(place)) for _ in range(2)] == ["7.png", "7.png"]
    assert str(written(PicturePlace.of(tmp_path / "7.png", overwrite=True))) == "7.png"


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    place = PicturePlace.of(tmp_path)
    with pytest.raises(OSError, match="full"), place.taken(APPLE):
        raise OSError("the disk is full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{seed}-{prompt}", "7-red-apple-on-a-the-..-table-\u82f9\u679c.png"),
        ("{seed:05}.jpg", "00007.jpg"),
        ("{model}/{width}x{height}/{sampler}_{schedule}_{steps}_{guidance:g}", "emoji/64x48/euler_karras_20_5.png"),
        ("{negative}", "picture.png"),
        ("v{{1}}", "v{1}.png"),
    ],
)
def test_a_template_names_pictures(template, name, tmp_path):
    assert str(written(PicturePlace.of(tmp_path, template))) == name


def test_dates_are_those_of_today(tmp_path):
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d\.png", str(written(PicturePlace.of(tmp_path, "{date}/{time}")))
    )


def test_numbers_count_up_from_the_largest_in_the_folder(tmp_path):
    place = PicturePlace.of(tmp_path, "{number:05}-{seed}")
    assert [str(written(place, seed=seed)) for seed in (9, 4)] == ["00001-9.png", "00002-4.png"]
    (tmp_path / "00041-1.png").touch()
    (tmp_path / "notes-90.txt").touch()
    assert str(written(place)) == "00042-7.png"


def test_long_prompts_become_names_that_file_systems_take(tmp_path):
    long = PicturePlace.of(tmp_path, "{prompt}-{negative}-{model}-{sampler}")
    name = written(long, **dict.fromkeys(("prompt", "negative", "model", "sampler"), "\u82f9\u679c" * 500)).name
    assert len(name.encode()) <= 204
    assert name.startswith("\u82f9\u679c")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{sed}", "did you mean {seed}?"),
        ("{seed.__class__}", "{seed}, {prompt}"),
        ("{seed!r}", "{seed}, {prompt}"),
        ("{}", "{seed}, {prompt}"),
        ("{seed", "a template such as {seed}-{prompt}"),
        ("../{seed}", "a name in the folder"),
        ("/tmp/{seed}", "a name in the folder"),
        ("{model}/.png", "a name in the folder"),
        ("{prompt:5d}", "number formats that fit"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, words, tmp_path):
    with pytest.raises(InvalidInput, match=re.escape(words)) as error:
        PicturePlace.of(tmp_path, template)
    assert error.value.argument == "--name"


def test_places_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for out in ("file", "file/below", "file/o.png", "file/a/b.jpg"):
        with pytest.raises(InvalidInput, match="a folder that can be made"):
            PicturePlace.of(tmp_path / out)
    with pytest.raises(InvalidInput, match=r"names of at most 240 bytes"):
        PicturePlace.of(tmp_path / f"{300 * 'a'}.png")

    def refuse(dir: Path) -> None:  # as /proc does, whatever its permissions say
        raise OSError(2, "No such file or directory", str(dir))

    monkeypatch.setattr("undertow.pictures.names.TemporaryFile", refuse)
    for out in ("new", "new.png"):
        with pytest.raises(InvalidInput, match="takes no files"):
            PicturePlace.of(tmp_path / out)


def test_one_file_is_checked_as_such(tmp_path):
    require_picture_file(tmp_path / "sheet.png")
    for name, words in (("sheet", "ends in"), ("prev.txt", "ends in"), ("", "it is a folder")):
        with pytest.raises(InvalidInput, match=words):
            require_picture_file(tmp_path / name)
    (tmp_path / "sheet.png").touch()
    require_picture_file(tmp_path / "sheet.png")
    with pytest.raises(InvalidInput, match="not there yet"):
        require_picture_file(tmp_path / "sheet.png", overwrite=False)


def test_a_drawing_may_have_an_ending_of_its_own(tmp_path):
    require_picture_file(tmp_path / "grids.svg", "--plot", endings=FIGURES)
    with pytest.raises(InvalidInput, match=re.escape("--plot is")) as refusal:
        require_picture_file(tmp_path / "grids.txt", "--plot", endings=FIGURES)
    assert refusal.value.expected == "a file that ends in .png, .jpg, .jpeg, .webp, .svg or .pdf"


def test_the_formats_are_those_that_pillow_writes():
    from PIL import Image

    Image.init()
    assert set(FORMATS.values()) <= Image.SAVE.keys()
    assert is_file_name(Path("a.PNG"))
