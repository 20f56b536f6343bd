"""Guidance around a real, tiny text-conditioned U-Net: contexts of unequal length in one call (trap T8)."""

from functools import cache

import pytest
import torch
from torch import Tensor

from undertow.diffusion import ClassifierFree, Denoiser, Epsilon, NoiseSchedule
from undertow.sampling import NoiseSource
from undertow.unet.conditioning import Conditioning, concatenate
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.unet import UNet

SCHEDULE = NoiseSchedule.scaled_linear()
SCALE = 7.5
# float32: the padded and the short attention sum in another order, and guidance multiplies the difference by 7.5.
PADDING = 2e-5


@cache
def random_unet() -> UNet:
    """Every weight random, so that no path through the network is silent."""
    config = UNetConfig(
        levels=(Level(channels=32, attention=CrossAttention(heads=2)), Level(channels=32)),
        middle=Middle(attention=CrossAttention(heads=2)),
        context_dim=24,
    )
    unet = UNet(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            width = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if width == 1 else width**-0.5))
    return unet


def text(tokens: int, seed: int) -> Conditioning:
    return Conditioning(context=4 * torch.randn(2, tokens, 24, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("negative_tokens", [77, 154, 7])
def test_one_call_equals_two_calls_whatever_the_token_counts(negative_tokens: int):
    unet, rows = random_unet(), []

    def network(x_in: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        rows.append(len(x_in))
        return unet(x_in, timesteps, conditioning)

    denoiser = Denoiser(network=network, parameterization=Epsilon(), schedule=SCHEDULE)
    prompt, negative = text(77, seed=1), text(negative_tokens, seed=2)
    x, sigma = NoiseSource([3, 4]).draw((4, 8, 8)), torch.tensor([2.0, 0.5])
    with torch.no_grad():
        both = denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), concatenate([negative, prompt]))
        together = ClassifierFree(scale=SCALE).combine(both.chunk(2))
        conditional, unconditional = denoiser(x, sigma, prompt), denoiser(x, sigma, negative)
    assert rows == [4, 2, 2]
    expected = unconditional + SCALE * (conditional - unconditional)
    assert (expected - conditional).norm() / conditional.norm() > 0.1  # the text matters
    largest = expected.abs().max().item()
    torch.testing.assert_close(together, expected, rtol=0, atol=PADDING * largest)
