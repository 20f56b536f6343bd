"""The plain autoencoder: what it refuses, its posterior, its attention."""

import copy
from functools import partial

import pytest
import torch

from tests.vae.minis import MVAE, TINY, build, latents_for, pixels_for, shared
from undertow.attention.math import math_attention
from undertow.attention.sdpa import sdpa_attention
from undertow.errors import InvalidInput
from undertow.vae.autoencoder import AutoencoderKL, Posterior
from undertow.vae.blocks import in_query_chunks
from undertow.vae.checks import check_latents, check_pixels
from undertow.vae.config import VAEConfig
from undertow.vae.precision import decode_safely, encode_safely

NAN = torch.full((1, 4, 4, 4), float("nan"))

BAD_LATENTS = {
    "rank 4": torch.zeros(4, 4, 4),
    "4 channels": torch.zeros(1, 16, 4, 4),
    "at least one": torch.zeros(1, 4, 0, 4),
    "floating point": torch.zeros(1, 4, 4, 4, dtype=torch.int64),
    "non-finite in 64 of 64": NAN,
}

BAD_PIXELS = {
    "rank 4": torch.zeros(3, 16, 16),
    "3 channels": torch.zeros(1, 16, 16, 3),
    "multiples of 2; resize or crop to 16x16": torch.zeros(1, 3, 16, 15),
    "floating point": torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
    "non-finite in 1 of 12": torch.zeros(1, 3, 2, 2).put_(torch.tensor([5]), torch.tensor([float("inf")])),
}


@pytest.mark.parametrize("message", BAD_LATENTS)
def test_bad_latents_are_refused(message):
    """By the check itself: under test, jaxtyping refuses ranks and types before it could."""
    with pytest.raises(InvalidInput, match=f"latents.*{message}"):
        check_latents(TINY, BAD_LATENTS[message])


@pytest.mark.parametrize("message", BAD_PIXELS)
def test_bad_pixels_are_refused(message):
    with pytest.raises(InvalidInput, match=f"pixels.*{message}"):
        check_pixels(TINY, BAD_PIXELS[message])


def test_every_door_is_guarded():
    vae = shared(TINY)
    for decode in (vae.decode, partial(decode_safely, vae)):
        with pytest.raises(InvalidInput, match="non-finite in 64 of 64"):
            decode(NAN)
    for encode in (vae.encode, partial(encode_safely, vae)):
        with pytest.raises(InvalidInput, match="multiples of 2"):
            encode(torch.zeros(1, 3, 16, 15))


def test_the_plain_network_casts_nothing_in_silence():
    with pytest.raises(InvalidInput, match=r"latents\.to\(torch\.float32\)"):
        shared(TINY).decode(latents_for(TINY, 4, 4).bfloat16())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_latents_of_any_size_decode(size):
    vae = shared(TINY)
    assert vae.decode(latents_for(TINY, *size)).shape == (1, 3, 2 * size[0], 2 * size[1])


def test_posterior_cuts_the_variance():
    moments = torch.cat((torch.zeros(1, 4, 1, 1), torch.tensor([-1e3, 0.0, 10.0, 1e3]).view(1, 4, 1, 1)), dim=1)
    posterior = Posterior.from_moments(moments)
    assert posterior.logvar.flatten().tolist() == [-30, 0, 10, 20]
    assert torch.isfinite(posterior.std).all()


def test_sample_is_mean_plus_deviation_times_noise():
    posterior = Posterior(mean=torch.full((1, 1, 1, 1), 3.0), logvar=torch.full((1, 1, 1, 1), 4.0).log())
    assert posterior.sample(torch.full((1, 1, 1, 1), -0.5)).item() == pytest.approx(2.0)


def test_encoding_what_was_decoded_keeps_the_shape():
    vae = shared(MVAE)
    pixels = pixels_for(MVAE, 16, 24)
    assert vae.decode(vae.encode(pixels).mode()).shape == pixels.shape


@pytest.mark.parametrize("mask", [None, torch.rand(2, 1, 1, 11, generator=torch.Generator().manual_seed(1)) > 0.3])
def test_query_chunks_change_nothing(mask):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 10, 8, generator=generator), torch.randn(2, 3, 11, 8, generator=generator)
    value = torch.randn(2, 3, 11, 8, generator=generator)
    whole = math_attention(query, key, value, mask)
    for queries in (1, 3, 5, 10, 100):
        assert torch.allclose(in_query_chunks(math_attention, queries)(query, key, value, mask), whole, atol=1e-6)


def test_the_kernel_is_injected():
    calls = []

    def kernel(query, key, value, mask=None):
        calls.append(tuple(query.shape))
        return sdpa_attention(query, key, value, mask)

    vae = AutoencoderKL(TINY, kernel).eval()
    vae.load_state_dict(shared(TINY).state_dict())
    latents = latents_for(TINY, 3, 5)
    assert torch.allclose(vae.decode(latents), shared(TINY).decode(latents), atol=1e-5)
    assert calls == [(1, 1, 15, 16)], "one head over all cells"


def test_bfloat16_is_close_to_float32():
    latents = latents_for(MVAE, 6, 8)
    low = build(MVAE).to(torch.bfloat16)
    reference = shared(MVAE).decode(latents)
    pixels = low.decode(latents.bfloat16())
    assert pixels.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(pixels.float() - reference) < 0.03 * torch.linalg.vector_norm(reference)


def test_gradient_flows_to_every_parameter():
    """A parameter without a gradient would be one that the forward ignores."""
    vae = build(TINY).train()
    with torch.enable_grad():
        posterior = vae.encode(pixels_for(TINY, 8, 8))
        vae.decode(posterior.sample(latents_for(TINY, 4, 4))).square().mean().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_large_maps_are_as_accurate_as_small_ones():
    """PyTorch's GroupNorm on CPU sums naively where channels come last, as attention, 1x1 convolutions by nn.matmul
    and channels-last weights leave them: over 384x384 cells, without care, pictures are off by 1e-4."""
    config = VAEConfig(level_channels=(8, 8, 8, 8), resnets=1, norm_groups=8)
    vae, latents = build(config), latents_for(config, 48, 48) + 1
    reference = copy.deepcopy(vae).double().decode(latents.double())
    assert (vae.decode(latents) - reference).abs().max() < 2e-5
    assert (decode_safely(vae, latents).pixels - reference).abs().max() < 2e-5
    vae.to(memory_format=torch.channels_last)
    assert (decode_safely(vae, latents).pixels - reference).abs().max() < 2e-5


def test_who_looks_into_the_convolution_of_a_doubled_map_sees_what_comes_out(monkeypatch):
    """Without a look the map is not doubled, and that convolution is not called."""
    vae, latents = build(TINY), latents_for(TINY, 6, 7)
    monkeypatch.setattr("undertow.nn.matmul.DOUBLED_CELLS", 1)
    conv, seen = vae.decoder.up_blocks[0].upsamplers[0].conv, []
    with torch.no_grad():
        unseen = vae.decode(latents)
        handle = conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
        pixels = vae.decode(latents)
        assert torch.equal(decode_safely(vae, latents).pixels, pixels)
        handle.remove()
    assert [one.shape[2:] for one in seen] == [(12, 14)] * 2
    assert not torch.equal(unseen, pixels)
    torch.testing.assert_close(unseen, pixels)
