"""What files in memory are to a stack."""

from pathlib import Path

import pytest

from tests.adapters.lora.comparing import targets_of, unet_of
from tests.adapters.lora.files import MINIS, is_attention, kohya, layers_of, ldm_names, write
from undertow import Adapter
from undertow.adapters.control.control_file import ControlFile
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.kind import AdaptedModel
from undertow.adapters.kinds import KINDS
from undertow.adapters.lora.lora_file import read_lora
from undertow.adapters.manager import AdapterManager
from undertow.errors import CheckpointError


def summarize(adapter, loaded):
    model = AdaptedModel(unet=unet_of("M15"))
    return next(kind(model) for kind in KINDS if isinstance(loaded, kind.loaded)).summarize(adapter, loaded)


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    layers = layers_of(unet_of("M15"), is_attention)
    return write(tmp_path_factory.mktemp("files") / "style.safetensors", kohya(layers))


def test_a_lora_changes_layers_by_its_blocks(style):
    lora = read_lora(style, targets_of("M15"))
    summary = summarize(Adapter(style, blocks={"up_blocks.*": 0, "mid_block.*": 0.5}), lora)
    assert (summary.name, summary.kind, summary.points) == ("style", "LoRA", ())
    assert summary.size_bytes == lora.size_bytes > 0
    acting = summary.layers.updates
    assert acting
    assert not any(layer.startswith("up_blocks") for layer in acting)
    middle = next(layer for layer in acting if layer.startswith("mid_block"))
    assert summary.layers.gain(middle, 2.0) == 1.0
    assert summarize(Adapter(style, scale=(0.0, -0.8, 0.3)), lora).scaled.gain == -0.8
    assert summarize(Adapter(style, scale=0.0), lora).scaled is None


def test_a_control_network_acts_at_its_points():
    unet = unet_of("M15")
    network = ControlNet.from_unet(unet)
    held = ControlFile(path=Path("edges"), content_hash="1", network=network, size_bytes=7, title="ControlNet")
    summary = summarize(Adapter("edges", blocks={"skips.0": 0}), held)
    assert (summary.kind, summary.size_bytes, summary.layers) == ("ControlNet", 7, None)
    assert summary.points == (*(f"skips.{index}" for index in range(1, 12)), "middle")
    assert summarize(Adapter("edges", scale=0.0), held).points == ()


def test_an_image_prompt_acts_at_cross_attentions():
    unet = unet_of("M15")
    summary = summarize(Adapter("face", blocks={"down_blocks.*": 0}), ImagePrompt.new(unet, 8))
    assert summary.points
    assert all(point.endswith("attn2") and not point.startswith("down") for point in summary.points)


def test_what_another_family_made_is_told_and_what_is_missing_refused(style, tmp_path):
    layers = layers_of(unet_of("MXL"), is_attention)
    named = {ldm: layers[layer] for ldm, layer in ldm_names(MINIS["MXL"], layers).items()}
    wrong = write(tmp_path / "wrong.safetensors", kohya(named))

    manager = AdapterManager(unet_of("M15"), None)
    one, other = manager.summarize((Adapter(style), Adapter(wrong)))
    assert one.problem == ""
    assert "wrong.safetensors" in other.problem
    assert other.layers is None
    with pytest.raises(CheckpointError):
        manager.summarize((Adapter(tmp_path / "missing.safetensors"),))
