"""Overflow: found, named, retried; clamps: asked for and counted; rows: one at a time."""

import pytest
import torch

from tests.vae.allocations import with_peak
from tests.vae.minis import MVAE, TINY, build, latents_for, pixels_for, shared
from undertow import processor
from undertow.errors import InvalidInput, NonFiniteError
from undertow.processor import has_bfloat16
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig
from undertow.vae.plan import plan_tiles, smallest_budget
from undertow.vae.precision import CLAMP, choose_dtype, decode_safely, encode_safely
from undertow.vae.program import decode_program

HALF = 0.01
"""Relative error of float16 against float32 on these networks: 0.002 measured."""

GUILTY = "decoder.up_blocks.1.resnets.0.conv1"
SIZE = (40, 36)
"""More than one tile of the smallest side, at both resolutions."""


def half_with_overflow(layer: str = GUILTY) -> AutoencoderKL:
    """float16 weights, one convolution of which gives numbers beyond 65,504. The norm behind it takes them back."""
    vae = build(TINY).to(torch.float16)
    vae.get_submodule(layer).weight.mul_(60000.0)
    return vae


def relative(ours, reference) -> float:
    return float(torch.linalg.vector_norm(ours.float() - reference) / torch.linalg.vector_norm(reference))


def in_float32(vae: AutoencoderKL) -> AutoencoderKL:
    copy = AutoencoderKL(vae.config).eval()
    copy.load_state_dict({name: tensor.float() for name, tensor in vae.state_dict().items()})
    return copy


def test_half_precision_that_fits_is_left_alone():
    vae, latents = build(TINY).to(torch.float16), latents_for(TINY, *SIZE)
    decoded = decode_safely(vae, latents)
    assert decoded.report.dtype == torch.float16
    assert decoded.report.retried == {}
    assert decoded.report.notes() == []
    assert decoded.pixels.dtype == torch.float32
    assert 0 < relative(decoded.pixels, in_float32(vae).decode(latents)) < HALF


@pytest.mark.parametrize("tiled", [False, True])
def test_overflow_is_retried_from_the_layer_that_is_named(tiled):
    """R135, T16: and what comes out is the float32 picture of the same weights."""
    vae, latents = half_with_overflow(), latents_for(TINY, *SIZE)
    reference = in_float32(vae).decode(latents)
    assert not torch.isfinite(vae.decode(latents.half())).all(), "or nothing is under test"
    budget = smallest_budget(decode_program(vae, SIZE)) if tiled else None
    decoded = decode_safely(vae, latents, budget_bytes=budget)
    assert decoded.report.retried == {0: GUILTY}
    assert decoded.report.tiled == tiled
    assert relative(decoded.pixels, reference) < HALF
    assert GUILTY in decoded.report.notes()[0]
    assert vae.dtype == torch.float16, "the network itself is left as it was"


def test_encoding_is_retried_too():
    vae = half_with_overflow("encoder.down_blocks.0.resnets.0.conv1")
    pixels = pixels_for(TINY, 16, 16)
    encoded = encode_safely(vae, pixels)
    assert encoded.report.retried == {0: "encoder.down_blocks.0.resnets.0.conv1"}
    assert relative(encoded.posterior.mean, in_float32(vae).encode(pixels).mean) < HALF


def test_only_the_rows_that_overflow_are_retried():
    vae = build(TINY).to(torch.float16)
    latents = latents_for(TINY, 8, 8, batch=3)
    latents[1] *= 60000 / latents[1].abs().max()
    report = decode_safely(vae, latents).report
    assert list(report.retried) == [1]
    assert report.retried[1].startswith("decoder.")


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("layer", ["to_q", "to_k"])
def test_overflow_inside_attention_is_not_laundered(layer, clamp):
    """Fused attention on CPU turns Inf in one channel of queries or keys into finite, wrong numbers; a clamp is for
    convolutions and does not reach it."""
    vae, latents = build(TINY).to(torch.float16), latents_for(TINY, 4, 4)
    vae.get_submodule(f"decoder.mid_block.attentions.0.{layer}").weight[0].mul_(60000.0)
    assert torch.isfinite(vae.decode(latents.half())).all(), "or looking at outputs would do"
    decoded = decode_safely(vae, latents, clamp=clamp)
    assert decoded.report.retried == {0: "decoder.mid_block.attentions.0"}
    assert relative(decoded.pixels, in_float32(vae).decode(latents)) < HALF


@pytest.mark.parametrize("budget", [None, 0.7])
def test_bad_weights_are_named_and_not_retried(budget):
    vae, latents = build(TINY), latents_for(TINY, *SIZE)
    vae.get_submodule(GUILTY).weight[0, 0, 0, 0] = float("nan")
    if budget is not None:
        budget = int(plan_tiles(decode_program(vae, SIZE)).peak_bytes * budget)
    with pytest.raises(NonFiniteError, match=f"{GUILTY} in torch.float32: .*weights or the input are bad") as caught:
        decode_safely(vae, latents, budget_bytes=budget)
    assert caught.value.layer == GUILTY


def test_clamp_is_off_unless_asked_for():
    """T17: nothing is hidden by default."""
    assert decode_safely(shared(TINY), latents_for(TINY, 4, 4)).report.clamped == {}


def test_clamp_counts_every_value_once():
    """R134: counted whole and in tiles alike, though tiles compute some values several times."""
    vae, latents = build(TINY), latents_for(TINY, *SIZE)
    whole = decode_safely(vae, latents, clamp=2.0)
    tiled = decode_safely(vae, latents, clamp=2.0, budget_bytes=smallest_budget(decode_program(vae, SIZE)))
    assert tiled.report.tiled
    assert (whole.pixels - tiled.pixels).abs().max() < 1e-4
    assert whole.report.clamped.keys() == tiled.report.clamped.keys()
    for layer, count in whole.report.clamped.items():
        assert abs(tiled.report.clamped[layer] - count) <= max(2, 1e-4 * count), "values at the limit may round across"
    assert whole.report.clamped["post_quant_conv"] == int((vae.post_quant_conv(latents).abs() > 2).sum()) > 0
    assert whole.pixels.abs().max() <= 2.0
    assert "the picture changed" in whole.report.notes()[0]
    assert not torch.allclose(whole.pixels, vae.decode(latents), atol=0.01)


def test_clamp_makes_half_precision_finite_without_a_retry():
    vae = half_with_overflow()
    report = decode_safely(vae, latents_for(TINY, *SIZE), clamp=CLAMP).report
    assert report.retried == {}
    assert list(report.clamped) == [GUILTY]


def test_clamp_does_not_hide_nan():
    vae = build(TINY)
    vae.get_submodule(GUILTY).bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=GUILTY):
        decode_safely(vae, latents_for(TINY, 4, 4), clamp=CLAMP)


@pytest.mark.parametrize("clamp", [0.0, -1.0, float("nan")])
def test_impossible_clamps_are_refused(clamp):
    with pytest.raises(InvalidInput, match="clamp"):
        decode_safely(shared(TINY), latents_for(TINY, 4, 4), clamp=clamp)


def test_rows_do_not_depend_on_each_other():
    """R53: bit for bit, since each is computed alone."""
    vae = shared(MVAE)
    latents, pixels = latents_for(MVAE, 5, 6, batch=3), pixels_for(MVAE, 16, 24, batch=3)
    together = decode_safely(vae, latents).pixels
    means = encode_safely(vae, pixels).posterior.mean
    for row in range(3):
        assert torch.equal(decode_safely(vae, latents[row : row + 1]).pixels, together[row : row + 1])
        assert torch.equal(encode_safely(vae, pixels[row : row + 1]).posterior.mean, means[row : row + 1])


@pytest.mark.parametrize("tiled", [False, True])
def test_bfloat16_that_the_processor_imitates_is_computed_in_float32(tiled, monkeypatch):
    """Step by step, so that within a budget only one step's weights are there twice."""
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    vae, latents = build(MVAE).to(torch.bfloat16), latents_for(MVAE, 16, 16)
    exact = in_float32(vae)
    whole = decode_safely(vae, latents)
    assert torch.equal(whole.pixels, exact.decode(latents))
    assert (vae.dtype, whole.report.dtype) == (torch.bfloat16, torch.float32)
    assert whole.report.notes()[0].startswith("VAE in torch.float32: this device has no bfloat16 instructions")

    budget = whole.report.peak_bytes // 2 if tiled else None
    decoded, peak = with_peak(lambda: decode_safely(vae, latents, budget_bytes=budget))
    assert decoded.report.tiled == tiled
    assert (decoded.pixels - whole.pixels).abs().max() <= 1e-4, "as in test_tiling"
    assert peak <= decoded.report.peak_bytes * 1.01, "as in test_tiling"
    _, least = with_peak(lambda: decode_safely(exact, latents, budget_bytes=budget))
    weights = sum(parameter.numel() for parameter in exact.decoder.parameters()) * 4
    assert peak - least < weights / 4, "or the whole decoder was converted at once"


def test_latents_of_another_type_are_taken():
    vae, latents = shared(TINY), latents_for(TINY, 4, 4).bfloat16()
    assert torch.equal(decode_safely(vae, latents).pixels, vae.decode(latents.float()))


@pytest.mark.parametrize(
    ("config", "wanted", "device", "dtype"),
    [
        (VAEConfig.sd(), torch.float32, "cpu", torch.float32),
        (VAEConfig.sd(), torch.bfloat16, "cpu", torch.bfloat16 if has_bfloat16() else torch.float32),
        (VAEConfig.sdxl(), torch.bfloat16, "cuda", torch.bfloat16),
        (VAEConfig.sd(), torch.float16, "cpu", torch.float32),
        (VAEConfig.sd(), torch.float16, "cuda", torch.float16),
        (VAEConfig.sdxl(), torch.float16, "cuda", torch.float32),
    ],
)
def test_own_type(config, wanted, device, dtype):
    """R149, T16."""
    choice = choose_dtype(config, wanted, device)
    assert choice.dtype == dtype
    assert choice.reason
