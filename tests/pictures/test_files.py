"""Pictures out of files, as adapters and the command line read them."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from undertow import Adapter, GenerationRequest
from undertow.cli import main
from undertow.errors import InvalidInput
from undertow.limits import PIXELS
from undertow.pictures.files import open_picture, opened, picture_from_bytes
from undertow.training.image_folder import read_picture

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
    with pytest.raises(
        InvalidInput, match=r"expected a picture \(PNG, JPEG, WebP, TIFF, GIF, BMP\); it is none of these, or damaged"
    ):
        open_picture("image", tmp_path / "text.png")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(*chunks: bytes, size: tuple[int, int] = (1, 1)) -> bytes:
    """A gray PNG file, with chunks before its pixels, of which only one is there."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


TOO_LARGE = "a text or a color profile in it is larger than it may be"
MANY_ZEROS = zlib.compress(bytes(20_000_000), 9)
"""20 KB that unpack to 20 MB."""

BOMBS = {
    "pixels": (
        png(size=(12_000, 10_000)),
        r"12000x10000 pixels, expected at most 67,108,864 pixels; make it",
    ),
    "more pixels than Pillow takes": (
        png(size=(60_000, 60_000)),
        r"more than 178,956,970 pixels, expected at most 67,108,864 pixels; make it smaller",
    ),
    "zTXt": (png(chunk(b"zTXt", b"parameters\0\0" + MANY_ZEROS)), f"expected a picture that can be read; {TOO_LARGE}"),
    "iTXt": (png(chunk(b"iTXt", b"undertow\0\1\0\0\0" + MANY_ZEROS)), TOO_LARGE),
    "iCCP": (png(chunk(b"iCCP", b"profile\0\0" + MANY_ZEROS)), TOO_LARGE),
    "cut": (png(size=(64, 64)), "expected a whole picture; it is damaged"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is EPS or PostScript"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "it is HEIC"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is SVG"),
    "empty": (b"", "it is none of these"),
}


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)


@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_strangers_call_a_picture_is_refused_in_one_sentence(tmp_path: Path, bomb: str, capsys):
    """From files, bytes, training folders and on the command line."""
    content, message = BOMBS[bomb]
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        open_picture("--image", path)
    with pytest.raises(InvalidInput, match=message):
        picture_from_bytes("image", content)
    found = read_picture(path)
    assert isinstance(found, str)
    assert "\n" not in found
    commands = [["generate", "a", "--image", str(path)], ["preprocess", "canny", str(path)]]
    commands += [["generate", "--from", str(path)], ["inspect", str(path)]] if bomb != "cut" else []
    for command in commands:
        assert main(command) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_nothing_is_warned_of_a_picture_that_is_refused(tmp_path: Path):
    (tmp_path / "large.png").write_bytes(BOMBS["pixels"][0])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(InvalidInput):
            open_picture("image", tmp_path / "large.png")
    assert not shown


def test_the_limit_of_pixels_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upright: Image.Image):
    upright.save(tmp_path / "a.png")
    monkeypatch.setenv(PIXELS.variable, "31")
    for refused in (
        lambda: open_picture("image", tmp_path / "a.png"),
        lambda: GenerationRequest(prompt="", image=upright),
        lambda: Adapter("edges", image=upright).images(),
        lambda: opened("image", np.asarray(upright)),
    ):
        with pytest.raises(InvalidInput, match=r"8x4 pixels, expected at most 31 pixels; .*UNDERTOW_MAX_PIXELS"):
            refused()
    monkeypatch.setenv(PIXELS.variable, "32")
    assert open_picture("image", tmp_path / "a.png").size == (8, 4)
    monkeypatch.setenv(PIXELS.variable, "many")
    with pytest.raises(InvalidInput, match="UNDERTOW_MAX_PIXELS is 'many', expected a whole number"):
        open_picture("image", tmp_path / "a.png")
    assert PIXELS.usual == 8192 * 8192


def test_a_pipe_is_no_picture(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidInput, match="it is not a regular file"):
        open_picture("image", tmp_path / "pipe.png")


@pytest.mark.usefixtures("no_ghostscript")
def test_an_image_that_the_caller_opened_is_not_decoded_in_other_formats(tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(BOMBS["EPS"][0])
    with Image.open(tmp_path / "cat.png") as image, pytest.raises(InvalidInput, match="a picture in EPS"):
        GenerationRequest(prompt="", image=image)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "gif", "bmp", "ppm"])
def test_every_format_of_the_list_is_read(tmp_path: Path, ending: str):
    Image.new("RGB", (8, 4), "white").save(tmp_path / f"a.{ending}")
    assert open_picture("image", tmp_path / f"a.{ending}").convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_a_telephones_jpeg_with_a_second_picture_is_its_first(tmp_path: Path):
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (4, 4))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert open_picture("image", tmp_path / "a.jpg").size == (8, 8)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
        assert GenerationRequest(prompt="", image=image).to_json()["image"]["size"] == [8, 8]


def test_bytes_and_arrays_are_pictures_too(tmp_path: Path, upright: Image.Image):
    upright.save(tmp_path / "a.png")
    array = np.asarray(upright)
    for given in ((tmp_path / "a.png").read_bytes(), array, array.astype(np.float32) / 255, upright):
        assert opened("image", given).tobytes() == upright.tobytes()
        request = GenerationRequest.from_json({"prompt": "", "image": given})
        assert request.image is not None
        assert request.image.tobytes() == upright.tobytes()
    with pytest.raises(InvalidInput, match=r"image is an array \(3,\) of int64, expected \[height, width\]"):
        opened("image", np.zeros(3, int))
