"""Rescues where more than one module of the U-Net is concerned: adapters, ControlNets, sums, probes of others."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.adapters.beside import control_file, picture
from tests.adapters.lora.files import kohya, layers_of, write
from tests.inspection.test_rescue import CLOSE, FIRST_DOWN, REQUEST, Planted
from tests.services import service_of
from undertow import Adapter
from undertow.engine.fault import WHOLE
from undertow.errors import NonFiniteError
from undertow.inspection.activations import ActivationProbe
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.probe import ModuleProbe
from undertow.inspection.self_attention import SelfAttentionProbe

SHORT = replace(REQUEST, steps=2)


@pytest.fixture
def both():
    """A float16 service and a float32 one, whose probes are taken off."""
    services = service_of("sd1", torch.float16), service_of("sd1")
    yield services
    for service in services:
        service.engine.probes.clear()
        service.adapters.unmerge()
        service.adapters.library.forget()
    gc.collect()  # networks that were changed, which tracebacks of replays still hold


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    return control_file(tmp_path_factory.mktemp("control"), service_of("sd1").unet, seed=5)


def difference(found, expected):
    return float((found.latents - expected.latents).norm() / expected.latents.norm())


def test_an_adapter_that_overflows_in_many_layers_is_computed_in_float32(both, tmp_path):
    half, whole = both
    loud = write(tmp_path / "loud.safetensors", kohya(layers_of(half.unet), rank=4))
    request = replace(SHORT, adapters=(Adapter(loud, scale=400.0),))
    expected, found = whole.run(request), half.run(request)
    assert found.report.faults[0].cause == "adapter"
    assert len(found.report.upcast) > 10
    assert difference(found, expected) < CLOSE


def test_an_adapter_that_breaks_a_module_it_does_not_act_in_is_named_with_its_scale(both, tmp_path):
    """A normalization squares what a LoRA made too large: it holds no LoRA, and is finite without one."""
    _, whole = both
    loud = write(tmp_path / "loud.safetensors", kohya(layers_of(whole.unet), rank=4))
    request = replace(SHORT, steps=1, guidance_scale=1.0, adapters=(Adapter(loud, scale=1e6),))
    before = {name: one.clone() for name, one in whole.unet.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"without loud at scale 1e\+06 the prediction is finite") as caught:
        whole.run(request)
    assert caught.value.fault is not None
    assert caught.value.fault.cause == "adapter"
    whole.adapters.unmerge()
    assert all(torch.equal(one, before[name]) for name, one in whole.unet.named_parameters())


@pytest.mark.parametrize("side", ["input", "output"])
def test_what_a_probe_puts_there_is_not_called_an_overflow(both, side):
    half, _ = both
    half.engine.probes.append(
        ModuleProbe(patterns=("mid_block.resnets.0",), side=side, probe=lambda site, x: x * float("nan"))
    )
    with pytest.raises(
        NonFiniteError, match=r"^mid_block\.resnets\.0 in float16: a probe's answer.*finite numbers, or None"
    ):
        half.run(SHORT)


@pytest.mark.parametrize("fails", [False, True])
def test_a_layer_of_a_controlnet_is_named_and_computed_in_float32(both, control, fails):
    half, whole = both
    request = replace(SHORT, adapters=(Adapter(control, image=picture(3), name="edges"),))
    layer = "down_blocks.0.resnets.0.conv1"
    networks = [service.adapters.read(control).network for service in both]
    with torch.inference_mode():
        for network in networks:
            network.get_submodule(layer).weight.mul_(3e4)
    if fails:
        with pytest.raises(NonFiniteError, match=rf"^controlnet\.edges\.{layer} in float16: overflow"):
            half.run(request, non_finite="fail")
        return
    expected, found = whole.run(request), half.run(request)
    (fault,) = found.report.faults
    assert (fault.module, fault.kind, fault.cause) == (f"controlnet.edges.{layer}", "Conv2d", "overflow")
    assert difference(found, expected) < CLOSE


def test_queries_of_a_controlnet_that_fused_attention_hides_are_found(both, control):
    half, _ = both
    request = replace(SHORT, adapters=(Adapter(control, image=picture(3), name="edges"),))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    with torch.inference_mode():
        half.adapters.read(control).network.get_submodule(layer).weight.mul_(5e4)
    fault = half.run(request).report.faults[0]
    assert (fault.module, fault.cause) == (f"controlnet.edges.{layer}", "overflow")


def test_a_sum_between_stages_that_leaves_the_range_is_computed_in_float32(both, control):
    """Of what the middle block gives and what a ControlNet adds to it, both of which float16 holds."""
    half, whole = both
    request = replace(SHORT, adapters=(Adapter(control, image=picture(3)),))
    for service in both:
        layer = service.adapters.read(control).network.controlnet_mid_block
        with torch.inference_mode():
            layer.weight.zero_()
            layer.bias.fill_(3e4)
        service.engine.probes.append(Planted("mid_block", factor=6e4))
    expected, found = whole.run(request), half.run(request)
    assert found.report.upcast[WHOLE] == 1
    assert [line for line in found.report.decisions if line.startswith(f"computed {WHOLE} in float32 for 1 row")]
    assert difference(found, expected) < CLOSE


def test_records_are_of_the_numbers_that_are_not_finite_and_are_taken_once(both):
    half, _ = both
    half.engine.probes.append(Planted("conv_in"))
    half.run(REQUEST, debug="layers,timing")
    sums = half.get_debug_info().layer_statistics
    assert not half.engine.probes[1:]
    assert sums["conv_out", "output"].records == 6


def test_averages_and_strips_are_of_what_is_drawn_with(both):
    """Of queries of 200,000, which float16 does not hold, attention's maps are as in float32."""
    seen = []
    for service in both:
        unet = service.unet
        probes = AttentionMapProbe(unet=unet), SelfAttentionProbe(unet=unet), ActivationProbe(unet=unet)
        service.engine.probes += [Planted(f"{FIRST_DOWN}.attn1.to_q", factor=2e5), *probes]
        result = service.run(REQUEST)
        assert bool(result.report.upcast) == (service is both[0])
        seen.append(probes)
    (words, own, layers), (expected_words, expected_own, expected_layers) = seen
    heat = words.maps()[0].heat
    assert torch.allclose(heat.sum(0), torch.ones_like(heat[0]), atol=1e-3)
    assert float((heat - expected_words.maps()[0].heat).abs().max()) < CLOSE
    for found, expected in zip(own.maps(), expected_own.maps(), strict=True):
        assert torch.allclose(found.entropy, expected.entropy, atol=0.05), found.site
    for key, one in layers.layers.items():
        assert one.std == pytest.approx(expected_layers.layers[key].std, rel=0.05), key
        assert one.rows == 1


def test_activations_are_means_over_all_pictures(both):
    """Not with each new picture as half of it."""
    _, whole = both
    together = whole.visualize_activations(REQUEST.prompt, steps=1, seed=3, count=3)
    apart = [whole.visualize_activations(REQUEST.prompt, steps=1, seed=seed) for seed in (3, 4, 5)]
    assert np.allclose(together.std, np.mean([one.std for one in apart], axis=0), rtol=1e-4)
    assert np.allclose(together.largest, np.max([one.largest for one in apart], axis=0), rtol=1e-4)
