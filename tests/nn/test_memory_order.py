"""GroupNorm over maps whose channels lie last, beside the formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.vae.minis import MVAE, build, latents_for
from undertow.nn.memory_order import group_norm, order_of
from undertow.vae.precision import decode_safely


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("mean", [0, 30, -30])
@pytest.mark.parametrize("channels", [64, 128], ids=["narrow", "wide"])
def test_numbers_far_from_zero_are_normed_as_well(channels, mean, rows):
    """PyTorch's own kernel is four times as far off, and eight percent at 512x512."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, channels, 192, 192, generator=generator) + mean).bfloat16()
    norm = nn.GroupNorm(16, channels).bfloat16().requires_grad_(False)
    norm.weight.normal_(generator=generator)
    norm.bias.normal_(generator=generator)
    expected = F.group_norm(x.double(), 16, norm.weight.double(), norm.bias.double(), norm.eps)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = group_norm(given, norm)
        assert found.stride() == given.stride()
        assert (found.double() - expected).norm() <= 4e-3 * expected.norm()


def test_not_a_number_stays_one():
    x = torch.randn(1, 16, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    x[0, 3, 2, 2] = torch.nan
    assert group_norm(x, nn.GroupNorm(4, 16).bfloat16().requires_grad_(False)).isnan().any()


def test_a_map_without_any_change_is_the_bias():
    x = torch.full((1, 16, 8, 8), 7.0).bfloat16().contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(4, 16).bfloat16().requires_grad_(False)
    norm.bias.fill_(0.5)
    assert (group_norm(x, norm) == 0.5).all()


@pytest.mark.skipif(
    order_of(torch.bfloat16, torch.device("cpu")) != torch.channels_last, reason="channels lie first on this processor"
)
@torch.no_grad()
def test_a_decoder_whose_maps_lie_far_from_zero_is_right_in_bfloat16():
    vae = build(MVAE)
    for name, layer in vae.decoder.named_modules():
        if name.endswith((".conv1", ".conv2")):
            layer.bias.add_(20.0)
    vae, latents = vae.bfloat16(), latents_for(MVAE, 40, 40).bfloat16()
    half = decode_safely(vae, latents).pixels
    whole = decode_safely(vae.float(), latents.float()).pixels
    assert half.is_contiguous()
    assert (half - whole).norm() <= 0.1 * whole.norm()
