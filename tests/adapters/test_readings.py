"""What files in memory are to a stack."""

from pathlib import Path

import pytest

from tests.adapters.lora.comparing import targets_of, unet_of
from tests.adapters.lora.files import MINIS, is_attention, kohya, layers_of, ldm_names, write
from undertow import Adapter
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.file import ControlFile
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.lora.file import read_lora
from undertow.adapters.readings import read_all, reading_of
from undertow.errors import CheckpointError


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    layers = layers_of(unet_of("M15"), is_attention)
    return write(tmp_path_factory.mktemp("files") / "style.safetensors", kohya(layers))


def test_a_lora_changes_layers_by_its_blocks(style):
    lora = read_lora(style, targets_of("M15"))
    config = unet_of("M15").config
    reading = reading_of(Adapter(style, blocks={"up_blocks.*": 0, "mid_block.*": 0.5}), lora, config)
    assert (reading.name, reading.kind, reading.points) == ("style", "LoRA", ())
    assert reading.size_bytes == lora.size_bytes > 0
    acting = reading.changes.updates
    assert acting
    assert not any(layer.startswith("up_blocks") for layer in acting)
    middle = next(layer for layer in acting if layer.startswith("mid_block"))
    assert reading.changes.gain(middle, 2.0) == 1.0
    assert reading_of(Adapter(style, scale=(0.0, -0.8, 0.3)), lora, config).active.gain == -0.8
    assert reading_of(Adapter(style, scale=0.0), lora, config).active is None


def test_a_control_network_acts_at_its_points():
    unet = unet_of("M15")
    network = ControlNet.from_unet(unet)
    held = ControlFile(path=Path("edges"), content_hash="1", network=network, size_bytes=7, title="ControlNet")
    reading = reading_of(Adapter("edges", blocks={"skips.0": 0}), held, unet.config)
    assert (reading.kind, reading.size_bytes, reading.changes) == ("ControlNet", 7, None)
    assert reading.points == (*(f"skips.{index}" for index in range(1, 12)), "middle")
    assert reading_of(Adapter("edges", scale=0.0), held, unet.config).points == ()


def test_an_image_prompt_acts_at_cross_attentions():
    unet = unet_of("M15")
    reading = reading_of(Adapter("face", blocks={"down_blocks.*": 0}), ImagePrompt.new(unet, 8), unet.config)
    assert reading.points
    assert all(point.endswith("attn2") and not point.startswith("down") for point in reading.points)


def test_what_another_family_made_is_told_and_what_is_missing_refused(style, tmp_path):
    layers = layers_of(unet_of("MXL"), is_attention)
    named = {ldm: layers[layer] for ldm, layer in ldm_names(MINIS["MXL"], layers).items()}
    wrong = write(tmp_path / "wrong.safetensors", kohya(named))

    def read(source):
        return read_lora(source, targets_of("M15"))

    config = unet_of("M15").config
    one, other = read_all(read, config, (Adapter(style), Adapter(wrong)))
    assert one.problem == ""
    assert "wrong.safetensors" in other.problem
    assert other.changes is None
    with pytest.raises(CheckpointError):
        read_all(read, config, (Adapter(tmp_path / "missing.safetensors"),))
