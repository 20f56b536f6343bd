"""`undertow generate` on damaged weights: what is read must be numbers, and with `--validate-weights` everything."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.golden.pipelines import save_pipeline
from undertow.cli import main

LAST_LAYER = "encoder.layers.2.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Stable Diffusion 1 reads its whole text encoder, XL never the last layer of its first one."""
    root = tmp_path_factory.mktemp("sound")
    return {family: save_pipeline(family, root / family) for family in ("sd1", "sdxl")}


@pytest.fixture
def damaged(sound, tmp_path):
    """Copies a pipeline with two values of one tensor that are no numbers, and says how many the tensor has."""

    def copy(family, component, tensor):
        folder = tmp_path / family
        shutil.copytree(sound[family], folder)
        (file,) = (folder / component).glob("*.safetensors")
        tensors = load_file(file)
        (name,) = [name for name in tensors if name.removeprefix("text_model.") == tensor]  # by transformers' version
        tensors[name].view(-1)[:2] = torch.tensor([float("nan"), float("inf")])
        save_file(tensors, file, metadata={"format": "pt"})
        return folder, tensors[name].numel()

    return copy


@pytest.fixture
def draw(tmp_path, capsys):
    """Draws with a model: the exit code, what was said, and the picture if there is one."""

    def run(folder, *options):
        out = tmp_path / "out.png"
        out.unlink(missing_ok=True)
        fast = ["--steps", "1", "--sampler", "euler", "--seed", "0", "--no-show", "--out", str(out)]
        code = main(["generate", "red apple", "--model", str(folder), *fast, *options])
        said = " ".join(capsys.readouterr().err.split())
        return code, said, np.asarray(Image.open(out)) if out.exists() else None

    return run


@pytest.mark.parametrize("options", [(), ("--validate-weights",)])
@pytest.mark.parametrize(
    ("component", "tensor"),
    [
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("text_encoder", "encoder.layers.0.mlp.fc1.weight"),
        ("text_encoder", LAST_LAYER),
    ],
)
def test_damage_that_is_read_is_named_and_nothing_is_drawn(damaged, draw, component, tensor, options):
    folder, count = damaged("sd1", component, tensor)
    code, said, picture = draw(folder, *options)
    assert code == 2
    assert f"{tensor}: NaN: 1/{count}, Inf: 1/{count}" in said
    assert picture is None


@pytest.mark.parametrize(("family", "options"), [("sdxl", ()), ("sd1", ("--clip-skip", "2"))])
def test_damage_that_is_not_read_is_noted_and_refused_only_when_asked(sound, damaged, draw, family, options):
    folder, count = damaged(family, "text_encoder", LAST_LAYER)
    found = f"{LAST_LAYER}: NaN: 1/{count}, Inf: 1/{count}"

    code, said, picture = draw(folder, *options)
    assert code == 0
    assert "note: damaged" in said
    assert found in said
    assert np.array_equal(picture, draw(sound[family], *options)[2])

    code, said, picture = draw(folder, "--validate-weights", *options)
    assert code == 2
    assert found in said
    assert picture is None


def test_sound_weights_pass(sound, draw):
    code, said, picture = draw(sound["sdxl"], "--validate-weights")
    assert code == 0
    assert "damaged" not in said
    assert picture is not None
