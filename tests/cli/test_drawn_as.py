"""Pictures that carry how their model was loaded, drawn again, inspected and diagnosed."""

import json

import pytest
from PIL import Image

import undertow
from undertow import AdapterCapacity
from undertow.cli.app import main
from undertow.embedded import embedded_models
from undertow.engine.loaded_as import computing_of
from undertow.engine.metadata import read_stored
from undertow.errors import MissingDependency

DRAW = ["generate", "owl", "--seed", "4", "--steps", "2", "--no-show", "--out", "drawn.png"]
AGAIN = ["generate", "--from", "drawn.png", "--no-show", "--overwrite", "--out", "again.png"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pixels(name: str) -> bytes:
    with Image.open(name) as image:
        return image.tobytes()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--precision", "bf16"], "--precision bf16"),
        (["--vae-precision", "bf16"], "--vae-precision bf16"),
        (["--prediction", "epsilon"], "--prediction epsilon"),
        (["--quantize", "int8-weights"], "--quantize int8-weights"),
        (["--no-flash-attention"], "--no-flash-attention"),
        (["--backend", "packed"], "--backend packed"),
        (["--lora", "mosaic", "--adapter-slots", "2"], "--adapter-slots 2"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_picture_is_drawn_again_with_its_model_loaded_as_it_was(typed, said, capsys):
    """It had other pixels, and nothing said so."""
    assert main([*DRAW, *typed]) == 0
    capsys.readouterr()
    assert main(AGAIN) == 0
    assert f"note: computed as the picture was: {said}" in capsys.readouterr().err
    assert pixels("again.png") == pixels("drawn.png")
    assert read_stored("again.png").computing == read_stored("drawn.png").computing
    assert main(["inspect", "drawn.png"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"computed with {said}" in shown


def test_what_is_typed_takes_the_place_of_what_is_stored(capsys):
    assert main([*DRAW, "--precision", "bf16", "--quantize", "int8-weights", "--backend", "packed"]) == 0
    assert main([*AGAIN, "--precision", "f32", "--quantize", "none", "--backend", "eager"]) == 0
    assert "computed as the picture was" not in capsys.readouterr().err
    assert main([*DRAW, "--overwrite"]) == 0
    assert read_stored("drawn.png").computing == undertow.engine.computing.PLAIN
    assert pixels("again.png") == pixels("drawn.png")


def test_what_is_not_installed_here_is_noted(monkeypatch, capsys):
    assert main([*DRAW, "--precision", "bf16"]) == 0
    load = undertow.loading.load

    def without(*args, dtype, **rest):
        if dtype == undertow.loading.torch.bfloat16:
            raise MissingDependency("openvino", "openvino")
        return load(*args, dtype=dtype, **rest)

    monkeypatch.setattr("undertow.loading.load", without)
    capsys.readouterr()
    assert main(AGAIN) == 0
    told = "the picture was computed with --precision bf16, which cannot be done here, so that its bits differ: this"
    assert f"note: {told} needs the package 'openvino'" in capsys.readouterr().err


def test_another_model_is_not_told_what_this_one_predicts(capsys):
    assert main([*DRAW, "--prediction", "epsilon", "--precision", "bf16"]) == 0
    capsys.readouterr()
    assert main([*AGAIN, "--model", "emoji-turbo"]) == 0
    assert "note: computed as the picture was: --precision bf16\n" in capsys.readouterr().err


@pytest.mark.slow
def test_the_doctor_draws_it_again_as_it_was(capsys):
    assert main([*DRAW, "--precision", "bf16", "--quantize", "int8-weights"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--picture", "drawn.png", "--only", "not-reproduced", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["findings"] == []
    assert "note: computed as the picture was: --precision bf16 --quantize int8-weights" in told.err


def test_what_python_and_the_service_choose_is_written_alike():
    torch = undertow.loading.torch
    plain = {"dtype": None, "used": torch.float32, "vae_dtype": None, "prediction": None, "quantize": None}
    plain |= {"backend": "eager", "attention": "auto", "capacity": None}
    assert computing_of("emoji", **plain).chosen() == {}
    assert computing_of("emoji", **plain | {"dtype": torch.float32}).chosen() == {}
    assert computing_of("emoji", **plain | {"used": torch.float16}).chosen() == {"precision": "f16"}
    assert computing_of(embedded_models()["emoji"], **plain | {"dtype": torch.float32}).chosen() == {}
    assert computing_of("m.safetensors", **plain).chosen() == {}
    assert computing_of("m.safetensors", **plain | {"dtype": torch.float32}).chosen() == {"precision": "f32"}
    others = {"prediction": "v_prediction", "quantize": {"*": "int8-weights"}, "backend": "openvino"}
    others |= {"attention": "memory", "capacity": AdapterCapacity(slots=3)}
    assert computing_of("emoji", **plain | others).chosen() == {
        "prediction": "v",
        "quantize": "int8-weights",
        "backend": "openvino",
        "attention": "memory",
        "slots": {"slots": 3, "rank": 16, "per_row": 2},
    }
