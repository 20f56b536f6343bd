import numpy as np
import pytest
import torch
from PIL import Image

from undertow.errors import ConfigError, DataError, InvalidInput
from undertow.training.data import ImageFolder

LANCZOS_RINGING = 12
"""A resize by Lanczos overshoots beside an edge by a few percent of 255."""


def save(folder, name, picture):
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Two classes: two red pictures in `apple`, one blue in `plum`."""
    save(tmp_path / "plum", "1.png", Image.new("RGB", (20, 20), (0, 0, 255)))
    save(tmp_path / "apple", "2.jpg", Image.new("RGB", (40, 20), (255, 0, 0)))
    save(tmp_path / "apple", "1.png", Image.new("RGB", (20, 20), (255, 0, 0)))
    return tmp_path


def read(folder, **options):
    return ImageFolder(folder=str(folder), size=8, **options).open()


def test_classes_are_sub_folders_in_alphabetical_order(folder):
    pictures = read(folder)
    assert pictures.class_names == ("apple", "plum")
    assert pictures.labels.tolist() == [0, 0, 1]
    assert pictures.pixels.shape == (3, 3, 8, 8)
    assert pictures.pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    assert pictures.pixels[2, :, 0, 0].tolist() == [0, 0, 255]


def test_other_files_and_hidden_folders_are_not_looked_at(folder):
    (folder / "apple" / "notes.txt").write_text("not a picture")
    (folder / "README.md").write_text("no class")
    save(folder / ".cache", "x.png", Image.new("L", (8, 8)))
    assert len(read(folder)) == 3


def test_a_wide_picture_is_cropped_to_its_middle(tmp_path):
    stripes = np.zeros((16, 48, 3), dtype=np.uint8)
    stripes[:, 16:32] = 200
    save(tmp_path / "a", "wide.png", Image.fromarray(stripes))
    assert (read(tmp_path).pixels.int() - 200).abs().max() <= LANCZOS_RINGING


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("I;16", 100 * 256, (100, 100, 100)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, color, expected):
    ending = "tiff" if mode == "CMYK" else "png"
    save(tmp_path / "a", f"picture.{ending}", Image.new(mode, (8, 8), color))
    assert read(tmp_path).pixels[0, :, 4, 4].tolist() == list(expected)


def test_one_channel_is_gray(folder):
    pictures = read(folder, channels=1)
    assert pictures.pixels.shape == (3, 1, 8, 8)
    assert pictures.pixels[0, 0, 0, 0].item() == 76  # 0.299 of red


def test_a_turned_photograph_stands_upright(tmp_path):
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "photo.png", exif=exif)
    pixels = read(tmp_path).pixels[0, 0]
    assert pixels[-1, 4] > 200 > 50 > pixels[0, 4]


@pytest.fixture
def damaged(folder):
    """The folder with two files that are no pictures."""
    whole = folder / "plum" / "1.png"
    (folder / "plum" / "cut.png").write_bytes(whole.read_bytes()[:60])
    (folder / "apple" / "fake.jpg").write_text("no picture")
    return folder


def test_bad_pictures_are_reported_by_path(damaged):
    with pytest.raises(DataError) as caught:
        read(damaged)
    message = str(caught.value)
    assert "2 of 5 pictures cannot be read" in message
    assert "apple/fake.jpg" in message
    assert "plum/cut.png" in message
    assert "--bad-pictures skip" in message


def test_bad_pictures_are_skipped_and_listed_when_asked_for(damaged):
    pictures = read(damaged, bad_pictures="skip")
    assert pictures.labels.tolist() == [0, 0, 1]
    assert [path.name for path in pictures.skipped] == ["fake.jpg", "cut.png"]


def test_a_class_without_one_good_picture_is_refused_even_when_skipping(damaged):
    (damaged / "plum" / "1.png").unlink()
    with pytest.raises(DataError, match="no picture of class plum can be read"):
        read(damaged, bad_pictures="skip")


def test_a_picture_of_absurd_size_is_bad_not_fatal(folder, monkeypatch):
    save(folder / "plum", "bomb.png", Image.new("L", (60, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 850)  # Pillow refuses more than twice that
    assert [path.name for path in read(folder, bad_pictures="skip").skipped] == ["bomb.png"]


def test_folders_without_classes_or_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no sub-folders"):
        read(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no pictures in a"):
        read(tmp_path)


def test_impossible_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="bad_pictures"):
        ImageFolder(folder="x", bad_pictures="ignore")
    with pytest.raises(ConfigError, match="channels"):
        ImageFolder(folder="x", channels=2)
    with pytest.raises(InvalidInput, match="at least 4"):
        ImageFolder(folder=str(tmp_path), size=2).open()


def test_pixels_are_bytes(folder):
    assert read(folder).pixels.dtype == torch.uint8
