"""Requests that were stored: read as they were written before, and drawn again from their description alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import undertow
from undertow import Adapter, AdapterStack, GenerationRequest, HighResolution, InvalidInput, Region, Views
from undertow.engine import description_json
from undertow.engine.metadata import read_description
from undertow.engine.report import Report
from undertow.engine.saving import save_picture
from undertow.pictures.files import open_picture

STORED = Path(__file__).parent / "stored"
"""What version 0.1.0 wrote before pydantic did: a request with every kind of part, and a picture."""

PICTURE = Image.new("RGB", (32, 16), (10, 20, 30))
MASK = Image.new("L", (32, 16), 255)


def photo(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_json_from_before_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 4), (1, 2, 3)).save("map.png")
    stored = json.loads((STORED / "request.json").read_text(encoding="utf-8"))
    style = Adapter("style.safetensors", scale=(0.0, 1.0), start=0.1, end=0.9, blocks={"up_blocks.*": 0.5}, priority=2)
    edges = Adapter("edges", name="lines", image=("map.png",), mask=("map.png", "map.png"), control_mode="prompt")
    found = GenerationRequest.from_json(stored, image=PICTURE, mask=MASK)
    assert found == GenerationRequest(
        prompt="red 猫",
        negative_prompt="dark",
        steps=7,
        guidance_scale=4.0,
        seed=3,
        count=2,
        size=(32, 48),
        sampler="euler_a",
        sampler_options={"eta": 0.5},
        schedule="karras",
        sigmas=(3.0, 1.0, 0.0),
        crop=(1, 2),
        clip_skip=2,
        image=PICTURE,
        mask=MASK,
        strength=0.5,
        regions=(Region(prompt="b", box=(0, 0, 0.5, 1), weight=2.0, adapters=(style,)),),
        high_resolution=HighResolution(scale=1.5, steps=3),
        views=Views(window=64),
        seamless="x",
        variation_seed=3,
        variation_strength=0.2,
        adapters=AdapterStack(
            (style, edges), strategy="weighted", weights={"lines": 0.5}, budget_bytes=9, off=frozenset({"style"})
        ),
    )
    absent = {"noise_convention": "variance", "forecast_steps": None, "embeddings": []}
    assert found.to_json(embed=False) == stored | absent, "what was not there is the default"


def test_a_picture_from_before_is_read():
    found = read_description(STORED / "picture.png", bundled=("mosaic",))
    request = GenerationRequest(
        prompt="a (red:1.2) apple",
        steps=3,
        sampler="dpmpp_2m",
        schedule="karras",
        seed=7,
        count=2,
        size=(64, 96),
        adapters=(Adapter("mosaic", scale=0.5),),
    )
    assert (found.request, found.index, found.model) == (request, 1, "emoji")


def test_a_request_is_drawn_again_from_its_description_alone(tmp_path):
    """Image, mask and a region's control map in memory, a reference picture in a file."""
    service = undertow.load("emoji", dtype=torch.float32)
    photo(2).save(tmp_path / "reference.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    region = Region(prompt="dog face", box=(0.5, 0, 1, 1), adapters=(Adapter("edges", image=photo(3)),))
    request = GenerationRequest(
        prompt="red apple",
        steps=2,
        sampler="euler",
        image=photo(1),
        mask=mask,
        strength=1.0,
        regions=(region,),
        adapters=(Adapter("references", image=tmp_path / "reference.png"),),
    )
    drawn = service.run(request)
    path = save_picture(drawn.images[0], tmp_path / "drawn.png", drawn.report)

    again = read_description(path, bundled=service.adapters.bundled.names()).request
    assert torch.equal(service.run(again).latents, drawn.latents)
    through_text = GenerationRequest.from_json(json.loads(json.dumps(request.to_json())))
    assert torch.equal(service.run(through_text).latents, drawn.latents)
    changes = ({"image": photo(4)}, {"regions": ()}, {"adapters": ()})
    for change in changes:
        assert not torch.equal(service.run(replace(again, **change)).latents, drawn.latents), change


def test_a_picture_that_is_written_over_stays_in_the_description(tmp_path):
    photo(1).save(tmp_path / "a.png")
    request = GenerationRequest(prompt="red", image=open_picture("image", tmp_path / "a.png"))
    report = Report(request=request, model="m", size=(32, 32), sigmas=(), seconds={})
    again = read_description(save_picture(photo(3), tmp_path / "a.png", report)).request.image
    assert again is not None
    assert again.tobytes() == photo(1).tobytes()
    assert again.tobytes() != photo(3).tobytes()


def test_pictures_that_would_make_a_description_too_long_are_left_out(tmp_path, monkeypatch):
    """libpng, and with it browsers, refuses text beyond 8 MB."""
    request = GenerationRequest(prompt="red", image=photo(1))
    report = Report(request=request, model="m", size=(32, 32), sigmas=(), seconds={})
    assert read_description(save_picture(photo(3), tmp_path / "whole.png", report)).request.image is not None
    monkeypatch.setattr(description_json, "LONGEST", 2000)
    path = save_picture(photo(3), tmp_path / "short.png", report)
    with pytest.raises(InvalidInput, match=r"give image '32x32' \(--image\)"):
        read_description(path)
    assert read_description(path, {"image": photo(1)}).request.image == photo(1)
