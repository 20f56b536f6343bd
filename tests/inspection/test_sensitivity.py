"""Layers that suffer most are found, by quantizing each alone, and left as they are."""

import pytest
import torch

from tests.services import service_of
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.inspection.noisy_picture import NoisyPicture
from undertow.inspection.sensitivity import measure_error, measure_sensitivity, most_sensitive, quantized_for_now
from undertow.nn.quantized import quantized_layers
from undertow.quantization import Quantization

ONLY = ("unet.mid_block.*", "clip_l.*.layers.0.*", "vae.decoder.*")
EVERY = Quantization(rules=(("*", "none"), *((pattern, "int8-weights") for pattern in ONLY)))


@pytest.fixture(scope="module")
def probe():
    service = service_of("sd1")
    return NoisyPicture.draw(service.model, service.adapters, GenerationRequest(prompt="a", steps=1))


def test_a_layer_with_an_outlier_is_the_most_sensitive(probe):
    """One large weight in a row makes the scale of that row too large for all others."""
    layer = probe.model.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    before, told = layer.weight.detach().clone(), []
    try:
        with torch.no_grad():
            layer.weight[:, 0] = 50 * layer.weight.abs().max()
        found = measure_sensitivity(
            probe, "int8-weights", only=ONLY, progress=lambda done, every: told.append((done, every))
        )
        assert found[0].name == "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"
        assert found[0].numbers == layer.weight.numel()
        assert found[0].error > 2 * found[1].error
        every = measure_error(probe, EVERY)
        assert measure_error(probe, EVERY.keeping(most_sensitive(found, 1))) < 0.5 * every
    finally:
        with torch.no_grad():
            layer.weight.copy_(before)
    assert {one.name.partition(".")[0] for one in found} == {"unet", "clip_l", "vae"}
    assert all(one.error > 0 for one in found)
    assert told[-1] == (len(found), len(found))


def test_layers_come_back(probe):
    unet = probe.model.unet
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    with quantized_for_now(
        probe.model, {"unet": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": "int8-weights"}}
    ):
        assert len(quantized_layers(unet)) == 1
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q is layer


def test_what_is_wrong_is_refused(probe):
    with pytest.raises(InvalidInput, match=r"only is 'unet.nothing'"):
        measure_sensitivity(probe, "int8-weights", only=("unet.nothing",))
    with pytest.raises(InvalidInput, match=r"this CPU has no instructions for it"):
        measure_sensitivity(probe, "float8")
    layers = {"unet": {"time_embedding.linear_1": "int8-weights"}}
    with quantized_for_now(probe.model, layers), pytest.raises(InvalidInput, match=r"quantized already"):
        measure_sensitivity(probe, "int8-weights")
