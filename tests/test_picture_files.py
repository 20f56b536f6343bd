"""Pictures out of files, as adapters and the command line read them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undertow import Adapter
from undertow.errors import InvalidInput
from undertow.picture_files import open_picture

ORIENTATION, TURNED_RIGHT = 0x0112, 6
"""An entry of EXIF, and what it says of a picture whose first row is the right edge of what was seen."""


@pytest.fixture
def upright() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 8, 3), dtype=np.uint8))


@pytest.fixture
def photo(tmp_path: Path, upright: Image.Image) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED_RIGHT
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def test_a_photo_is_turned_as_its_camera_says(photo: Path, upright: Image.Image):
    assert open_picture("image", photo).tobytes() == upright.tobytes()


def test_so_is_an_adapters(photo: Path, upright: Image.Image):
    (seen,) = Adapter("edges", image=photo).images()
    assert seen.tobytes() == upright.tobytes()


def test_what_is_missing_or_no_picture_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"--mask is .*nothing.png, expected a picture file; there is no such file"):
        open_picture("--mask", tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InvalidInput, match="cannot identify image file"):
        open_picture("image", tmp_path / "text.png")
