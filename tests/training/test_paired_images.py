"""PairedImages of training pictures: made by a preprocessor, or found by their names."""

import numpy as np
import pytest
import torch
from PIL import Image

from undertow.errors import DataError, InvalidInput
from undertow.hints.edges import canny
from undertow.training.captioned import captioned_files, load_captioned
from undertow.training.paired_images import PREPROCESSORS, hints_for, load_paired_images


@pytest.fixture
def folder(tmp_path):
    """Two pictures that are wider than high, and a map for each, as a folder beside them."""
    for name in ("pictures", "maps"):
        (tmp_path / name).mkdir()
    for stem, color in (("red apple", (255, 0, 0)), ("plum", (0, 0, 255))):
        picture = Image.new("RGB", (48, 32), "white")
        picture.paste(color, (16, 8, 32, 24))
        picture.save(tmp_path / "pictures" / f"{stem}.png")
        Image.new("L", (48, 32), sum(color) // 3 + len(stem)).save(tmp_path / "maps" / f"{stem}.webp", lossless=True)
    return tmp_path


def test_hints_are_made_of_the_pictures_as_they_are_trained_on(folder):
    few = load_captioned(folder / "pictures", size=32)
    hints = hints_for(few, "canny", folder / "pictures")
    assert hints.shape == few.pixels.shape
    for hint, picture in zip(hints, few.pixels, strict=True):
        edges = np.asarray(canny(Image.fromarray(picture.permute(1, 2, 0).numpy())))
        assert edges.any()
        assert (hint.numpy() == edges).all()


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_every_kind_gives_a_hint_for_each_picture(folder, kind):
    few = load_captioned(folder / "pictures", size=32)
    hints = hints_for(few, kind, folder / "pictures")
    assert (hints.shape, hints.dtype) == (few.pixels.shape, torch.uint8)


def test_paired_images_are_found_by_name_in_the_order_of_the_pictures(folder):
    few = load_captioned(folder / "pictures", size=32)
    assert [path.stem for path in captioned_files(folder / "pictures")] == list(few.captions) == ["plum", "red apple"]
    maps = hints_for(few, str(folder / "maps"), folder / "pictures")
    assert [int(one.float().mean().round()) for one in maps] == [85 + len("plum"), 85 + len("red apple")]
    assert load_paired_images(folder / "maps", folder / "pictures", size=16).shape == (2, 3, 16, 16)


def test_paired_images_are_cut_as_their_pictures_are(folder):
    (folder / "maps" / "plum.webp").unlink()
    with Image.open(folder / "pictures" / "plum.png") as picture:
        picture.save(folder / "maps" / "plum.bmp")
    few = load_captioned(folder / "pictures", size=32)
    assert load_paired_images(folder / "maps", folder / "pictures", size=32)[0].equal(few.pixels[0])


def test_what_cannot_be_found_or_read_is_named(folder):
    few = load_captioned(folder / "pictures", size=32)
    with pytest.raises(InvalidInput, match="canny, soft-edges"):
        hints_for(few, "hed", folder / "pictures")
    with pytest.raises(DataError, match="no such folder"):
        load_paired_images(folder / "nowhere", folder / "pictures", size=32)
    (folder / "maps" / "plum.png").write_bytes((folder / "maps" / "plum.webp").read_bytes())
    with pytest.raises(DataError, match="several files in it for plum"):
        load_paired_images(folder / "maps", folder / "pictures", size=32)
    (folder / "maps" / "plum.webp").unlink()
    (folder / "maps" / "plum.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read: plum"):
        load_paired_images(folder / "maps", folder / "pictures", size=32)
    (folder / "maps" / "plum.png").unlink()
    with pytest.raises(DataError, match="nothing in it for plum"):
        load_paired_images(folder / "maps", folder / "pictures", size=32)
