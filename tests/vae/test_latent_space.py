"""Latent spaces: published constants, round trips, previews."""

import pytest
import torch

from undertow.errors import ConfigError, InvalidInput
from undertow.vae.latent_space import LATENT_SPACES, PLAYGROUND_V25, SD, SDXL, UPSCALER_X4, LatentSpace
from undertow.vae.latent_values import latents_as_picture, latents_from_model, latents_to_model

ROUND_TRIP = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.1}
"""Two roundings of numbers up to 30; the constants themselves are float32."""


@pytest.mark.parametrize(
    ("space", "scale"), [(SD, 0.18215), (SDXL, 0.13025), (UPSCALER_X4, 0.08333), (PLAYGROUND_V25, 0.5)]
)
def test_published_scales(space, scale):
    """R153."""
    assert space.scale == scale
    if space.mean is None:
        assert torch.allclose(latents_to_model(space, torch.ones(1, 4, 1, 1)), torch.full((1, 4, 1, 1), scale))


@pytest.mark.parametrize("dtype", ROUND_TRIP)
@pytest.mark.parametrize("name", LATENT_SPACES)
def test_there_and_back(name, dtype):
    space = LATENT_SPACES[name]
    latents = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0)).mul(7).to(dtype)
    back = latents_from_model(space, latents_to_model(space, latents))
    assert back.dtype == dtype
    assert (back - latents).abs().max() <= ROUND_TRIP[dtype]


def test_mean_and_deviation_are_per_channel():
    space = LatentSpace(scale=0.5, channels=2, mean=(1.0, -2.0), std=(4.0, 8.0))
    latents = torch.tensor([1.0 + 4.0, -2.0 - 16.0]).view(1, 2, 1, 1)
    assert latents_to_model(space, latents).flatten().tolist() == [0.5, -1.0]


def test_shift_is_subtracted_before_scaling():
    space = LatentSpace(scale=0.5, shift=3.0, channels=1)
    assert latents_to_model(space, torch.full((1, 1, 1, 1), 7.0)).item() == 2.0
    assert latents_from_model(space, torch.full((1, 1, 1, 1), 2.0)).item() == 7.0


@pytest.mark.parametrize("space", [SD, SDXL])
def test_preview_is_the_linear_map(space):
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    picture = latents_as_picture(space, latents)
    assert picture.shape == (2, 3, 5, 3)
    assert picture.dtype == torch.uint8
    cell, factors = latents[1, :, 2, 4], space.preview_factors
    for color in range(3):
        value = sum(float(cell[row]) * factors.weight[row][color] for row in range(4)) + factors.bias[color]
        assert abs(int(picture[1, 2, 4, color]) - min(max((value + 1) * 127.5, 0), 255)) <= 0.51


def test_preview_survives_any_numbers_and_types():
    latents = torch.zeros(1, 4, 1, 4)
    latents[0, 0, 0] = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0])
    assert latents_as_picture(SD, latents)[0, 0, :, 0].tolist() == [0, 255, 0, 128]
    assert latents_as_picture(SD, latents.bfloat16()[..., 3:]).tolist() == [[[[128, 128, 128]]]]


def test_preview_without_factors_is_refused():
    with pytest.raises(InvalidInput, match="preview factors"):
        latents_as_picture(UPSCALER_X4, torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("call", [latents_to_model, latents_from_model, latents_as_picture])
def test_wrong_channels_are_refused(call):
    with pytest.raises(InvalidInput, match=r"\[batch, 4, height, width\]"):
        call(SD, torch.zeros(1, 16, 2, 2))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("scale", {"scale": 0.0}),
        ("mean", {"scale": 1.0, "mean": (0.0,)}),
        ("std", {"scale": 1.0, "std": (1.0, 1.0, 0.0, 1.0)}),
        ("shift", {"scale": 1.0, "shift": 1.0, "mean": (0.0,) * 4}),
        ("preview_factors", {"scale": 1.0, "channels": 8, "preview_factors": SD.preview_factors}),
    ],
)
def test_contradictions_are_refused(field, values):
    with pytest.raises(ConfigError, match=field):
        LatentSpace(**values)
