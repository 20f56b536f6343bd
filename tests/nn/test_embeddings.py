"""The three sinusoid conventions (trap T11) and the MLP behind them."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from tests.golden.minis import randomize
from undertow.nn.embeddings import TimeEmbedding, guidance_sinusoid, sinusoid

NUMBERS = torch.tensor([0.0, 1.0, 3.0, 500.25, 871.5, 999.0])

CONVENTIONS = {
    "stable diffusion": {"cos_first": True, "frequency_shift": 0.0},
    "ddpm": {"cos_first": False, "frequency_shift": 1.0},
    "source document 002": {"cos_first": False, "frequency_shift": 0.0},
}


@pytest.mark.parametrize("dim", [4, 32, 320])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_sinusoids_equal_diffusers(name, dim):
    """To the last bit: the same operations in the same order."""
    convention = CONVENTIONS[name]
    reference = get_timestep_embedding(
        NUMBERS,
        dim,
        flip_sin_to_cos=convention["cos_first"],
        downscale_freq_shift=convention["frequency_shift"],
    )
    assert torch.equal(sinusoid(NUMBERS, dim, **convention), reference)


# Worked by hand for the number 2 and width 4: frequencies 1 and 10000^(-1/2) = 0.01 (shift 0), 1 and 1e-4 (shift 1).
BY_HAND = {
    "stable diffusion": [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)],
    "ddpm": [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)],
    "source document 002": [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)],
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_sinusoids_equal_numbers_worked_by_hand(name):
    value = sinusoid(torch.tensor([2.0]), 4, **CONVENTIONS[name])
    assert value[0].tolist() == pytest.approx(BY_HAND[name], abs=1e-6)


def test_integers_and_fractions_are_computed_in_float32():
    assert torch.equal(sinusoid(torch.tensor([3, 999]), 32), sinusoid(torch.tensor([3.0, 999.0]), 32))
    neighbours = sinusoid(torch.tensor([999.0, 999.5]), 32)
    assert neighbours.dtype == torch.float32
    assert (neighbours[0] - neighbours[1]).abs().max() > 0.1
    assert sinusoid(torch.tensor([3.0], dtype=torch.float64), 32).dtype == torch.float32


def test_stable_diffusions_convention_is_the_usual():
    assert torch.equal(sinusoid(NUMBERS, 8), sinusoid(NUMBERS, 8, **CONVENTIONS["stable diffusion"]))


def test_guidance_is_embedded_as_in_ddpm():
    scales = torch.tensor([1.25, 7.5, 15.0])
    expected = get_timestep_embedding(1000 * (scales - 1), 16, flip_sin_to_cos=False, downscale_freq_shift=1)
    assert torch.equal(guidance_sinusoid(scales, 16), expected)


def test_guidance_is_a_thousand_times_the_scale_above_one():
    assert torch.equal(guidance_sinusoid(torch.tensor([1.0]), 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    value = guidance_sinusoid(torch.tensor([1.002]), 4)
    assert value[0].tolist() == pytest.approx(BY_HAND["ddpm"], abs=1e-3)


@torch.no_grad()
def test_time_embedding_is_linear_silu_linear():
    layer = TimeEmbedding(8, 12, guidance_dim=6)
    randomize(layer, 1)
    generator = torch.Generator().manual_seed(2)
    x, guidance = torch.randn(3, 8, generator=generator), torch.randn(3, 6, generator=generator)
    for given, start in ((None, x), (guidance, x + guidance @ layer.cond_proj.weight.T)):
        hidden = start @ layer.linear_1.weight.T + layer.linear_1.bias
        expected = (hidden * hidden.sigmoid()) @ layer.linear_2.weight.T + layer.linear_2.bias
        assert torch.allclose(layer(x, given), expected, atol=1e-5)
    assert layer.cond_proj.bias is None
    assert TimeEmbedding(8, 12).cond_proj is None
