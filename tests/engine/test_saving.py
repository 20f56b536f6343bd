"""Pictures to files in each format, one by one, with what repeats them where other programs look for it."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base

from undertow import Region
from undertow.engine.a1111_text import a1111_text
from undertow.engine.exif import from_exif
from undertow.engine.metadata import read_description
from undertow.engine.report import Report
from undertow.engine.request import GenerationRequest
from undertow.engine.saving import name_fields, save_picture
from undertow.pictures.names import FIELDS

RED = Image.new("RGB", (96, 64), (200, 20, 20))


def report(**settings) -> Report:
    request = GenerationRequest(**{"prompt": "a (red:1.2) apple, 苹果", "seed": 7, "count": 3} | settings)
    return Report(request=request, model="/models/emoji.safetensors", size=(64, 96), sigmas=(1.0, 0.0), seconds={})


@pytest.mark.parametrize(
    ("name", "form"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
def test_each_format_repeats_its_picture(name, form, tmp_path):
    original = report(negative_prompt="ünïcode", image=RED)
    path = save_picture(RED, tmp_path / "new" / name, original, index=1)
    with Image.open(path) as image:
        assert image.format == form
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(RED, dtype=int)).max() <= 3
    found = read_description(path)
    assert (found.request.prompt, found.request.negative_prompt, found.index) == (original.request.prompt, "ünïcode", 1)
    assert found.request.image is not None
    assert found.request.image.tobytes() == RED.tobytes()


def test_the_steps_of_sigmas_are_named_where_those_take_the_place_of_steps():
    along = report(steps=20, sigmas=(14.0, 5.0, 1.0, 0.0))
    assert name_fields(along, 0)["steps"] == 3
    assert "Steps: 3," in a1111_text(along, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_a1111_s_text_is_where_a1111_writes_it(name, tmp_path):
    """UserComment of the Exif directory, marked as Unicode, in UTF-16 with the high byte first: what A1111 saves
    (modules/images.py) by `piexif.helper.UserComment.dump(text, encoding="unicode")`."""
    path = save_picture(RED, tmp_path / name, report())
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(IFD.Exif)[Base.UserComment]
    assert comment == b"UNICODE\0" + a1111_text(report(), 0).encode("utf-16-be")


def test_a_jpeg_keeps_of_a_long_description_what_it_has_room_for(tmp_path, caplog):
    """A segment of JPEG has at most 65,533 bytes: pictures go first, then what repeats the picture, then the text."""
    caplog.set_level(logging.WARNING, logger="undertow")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    read = {}
    long = "dark " * 3276  # near the most that a prompt may have
    regions = tuple(Region(prompt=long, box=(0, 0, 1, 1)) for _ in range(5))
    for name, settings in (("picture", {"image": noise}), ("prompt", {"regions": regions})):
        path = save_picture(RED, tmp_path / f"{name}.jpg", report(**settings))
        with Image.open(path) as image:
            read[name] = from_exif(image)
    assert read["picture"].keys() == {"parameters", "undertow"}
    assert '"png"' not in read["picture"]["undertow"]
    assert read["prompt"].keys() == {"parameters"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'prompt.jpg'} has no room for what repeats it: a PNG or WebP file has"
    ]
    both = report(prompt=long, negative_prompt=long)
    with Image.open(save_picture(RED, tmp_path / "all.jpg", both)) as image:
        assert not from_exif(image)


def test_a_damaged_exif_block_has_no_texts():
    image = Image.new("RGB", (8, 8))
    image.getexif()[0xFE55] = b"undertow\0{"
    assert from_exif(image) == {}
    assert from_exif(Image.new("RGB", (8, 8))) == {}


def test_a_name_says_the_model_and_not_where_it_lies():
    fields = name_fields(report(), 2)
    assert (fields["model"], fields["seed"], fields["index"]) == ("emoji", 9, 3)
    assert name_fields(replace(report(), model="/models/sd_xl_1.0"), 0)["model"] == "sd_xl_1.0"


def test_a_name_may_be_made_of_every_field():
    assert name_fields(report(), 0).keys() == FIELDS.keys() - {"date", "time", "number"}


def test_comments_of_other_programs_are_read(tmp_path):
    """Swapped bytes, bytes that are called ASCII, and ComfyUI's fields of the camera."""
    text = "a 猫\nSteps: 1"
    for name, comment in (
        ("swapped", b"UNICODE\0" + text.encode("utf-16-le")),
        ("ascii", b"ASCII\0\0\0" + text.encode()),
    ):
        exif = Image.Exif()
        exif.get_ifd(IFD.Exif)[Base.UserComment] = comment
        RED.save(tmp_path / f"{name}.webp", exif=exif)
        with Image.open(tmp_path / f"{name}.webp") as image:
            assert from_exif(image) == {"parameters": text}
    exif = Image.Exif()
    exif[Base.Model] = 'prompt:{"3": {}}'
    exif[Base.Make] = "workflow:{}"
    RED.save(tmp_path / "comfy.webp", exif=exif)
    with Image.open(tmp_path / "comfy.webp") as image:
        assert from_exif(image) == {"prompt": '{"3": {}}', "workflow": "{}"}
    exif = Image.Exif()
    exif[0xFE55] = b"undertow\0" + b"[" * 100_000
    RED.save(tmp_path / "deep.webp", exif=exif)
    with Image.open(tmp_path / "deep.webp") as image:
        assert from_exif(image) == {}
