"""Pictures in JSON: found again with the same pixels, or refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from undertow import Adapter, GenerationRequest, InvalidInput
from undertow.pictures.files import describe_picture, open_picture
from undertow.pictures.pixels import to_mask, to_pixels

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "RGBa", "I;16", "F")


def photo(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(levels)
    return image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)


def through_json(request: GenerationRequest) -> GenerationRequest:
    return GenerationRequest.from_json(json.loads(json.dumps(request.to_json())))


@pytest.mark.parametrize("mode", MODES)
def test_an_image_in_memory_becomes_bytes_with_the_same_pixels(mode):
    request = GenerationRequest(prompt="", image=photo(mode))
    stored = request.to_json()["image"]
    assert stored.keys() == {"size", "sha256", "png"}
    again = through_json(request).image
    assert again is not None
    assert torch.equal(to_pixels(again, (4, 6)), to_pixels(photo(mode), (4, 6)))
    if mode != "YCbCr":  # whose own luma differs from that of its RGB by rounding
        assert torch.equal(to_mask(again, (4, 6)), to_mask(photo(mode), (4, 6)))
    assert describe_picture(again) == describe_picture(photo(mode))


def test_an_image_that_came_from_a_file_becomes_its_path(tmp_path):
    photo().save(tmp_path / "photo.png")
    for image in (open_picture("image", tmp_path / "photo.png"), Image.open(tmp_path / "photo.png")):
        request = GenerationRequest(prompt="", image=image)
        stored = request.to_json()["image"]
        assert stored == describe_picture(photo()) | {"file": str(tmp_path / "photo.png")}
        again = through_json(request)
        assert again.image is not None
        assert again.image.tobytes() == photo().tobytes()
        assert again.to_json() == request.to_json()


def test_what_was_painted_over_is_no_longer_in_its_file(tmp_path):
    photo().save(tmp_path / "photo.png")
    image = open_picture("image", tmp_path / "photo.png")
    ImageDraw.Draw(image).point((0, 0), "red")
    stored = GenerationRequest(prompt="", image=image).to_json()["image"]
    assert "file" not in stored
    assert "png" in stored


def test_copies_are_not_taken_for_the_file(tmp_path):
    photo().save(tmp_path / "photo.png")
    turned = open_picture("image", tmp_path / "photo.png").convert("L")
    assert "png" in GenerationRequest(prompt="", image=turned).to_json()["image"]


def test_pictures_of_adapters_stay_files_or_become_images(tmp_path):
    photo().save(tmp_path / "photo.png")
    path = str(tmp_path / "photo.png")
    from_files = Adapter("edges", image=path, mask=(path, path))
    assert Adapter.from_json(json.loads(json.dumps(from_files.to_json()))) == from_files
    in_memory = Adapter("edges", image=photo(), mask=(photo("L"), photo("L")))
    assert Adapter.from_json(json.loads(json.dumps(in_memory.to_json()))) == in_memory
    assert Adapter.from_json({"source": "edges", "image": path}) == Adapter("edges", image=path)
    assert Adapter.from_json({"source": "edges", "image": []}) == Adapter("edges")


def test_files_and_bytes_with_other_pixels_are_refused(tmp_path):
    photo().save(tmp_path / "photo.png")
    stored = Adapter("edges", image=str(tmp_path / "photo.png")).to_json()
    Image.new("RGB", (6, 4)).save(tmp_path / "photo.png")
    with pytest.raises(InvalidInput, match=r"^image is 6x4, expected the same picture as before; its pixels differ"):
        Adapter.from_json(stored)
    stored = GenerationRequest(prompt="", image=photo()).to_json()
    stored["image"]["sha256"] = "0"
    with pytest.raises(InvalidInput, match="pixels differ"):
        GenerationRequest.from_json(stored)
    del stored["image"]["sha256"], stored["image"]["size"]
    again = GenerationRequest.from_json(stored).image
    assert again is not None
    assert again.tobytes() == photo().tobytes()


@pytest.mark.parametrize("embed", [True, False])
def test_only_bytes_are_left_out_where_they_are_not_wanted(tmp_path, embed):
    photo().save(tmp_path / "photo.png")
    adapters = (Adapter("edges", image=photo()), Adapter("edges", image=tmp_path / "photo.png"))
    first, second = GenerationRequest(prompt="", adapters=adapters).to_json(embed=embed)["adapters"]
    assert ("png" in first["image"]) == embed
    assert second["image"]["file"] == str(tmp_path / "photo.png")
