"""Normalization statistics stay in float32 for half-precision inputs.

Source document 004 reports 100 % NaN for an f16 tensor [1, 320, 128, 128] of magnitude 30: its squares sum to
4.7e9 over the 163,840 numbers of a group (of 32), and f16 ends at 65,504.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.golden.minis import randomize
from undertow.nn.normalization import NARROW, GroupNorm
from undertow.nn.resnet import ResBlock

SHAPE = (1, 320, 128, 128)
MAGNITUDE = 30.0
GROUPS = 32

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference on outputs of up to 5: the output's own rounding (half of 2^-8 and 2^-5), and little else."""

HALF = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative L2 distance of a ResBlock to float32: two convolutions' worth of rounded activations."""


@pytest.fixture(scope="module")
def large() -> Tensor:
    """With an offset, so that a mistake in the mean shows as well."""
    return MAGNITUDE * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) + 10.0


def _group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """In float64, with biased variance."""
    groups = x.double().unflatten(1, (norm.num_groups, -1)).flatten(2)
    mean = groups.mean(2, keepdim=True)
    variance = (groups - mean).square().mean(2, keepdim=True)
    normal = ((groups - mean) / (variance + norm.eps).sqrt()).view_as(x)
    return normal * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@torch.no_grad()
def test_group_norm_of_large_activations_equals_float64(large, dtype):
    norm = nn.GroupNorm(GROUPS, SHAPE[1])
    randomize(norm, 1)
    norm, x = norm.to(dtype), large.to(dtype)
    if dtype == torch.float16:
        assert x.square().sum().isinf(), "the case must be one that a naive sum cannot hold"
    output = norm(x)
    assert output.isfinite().all()
    assert (output.double() - _group_norm(x, norm)).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@torch.no_grad()
def test_layer_norm_of_large_activations_equals_float64(large, dtype):
    norm = nn.LayerNorm(SHAPE[1])
    randomize(norm, 1)
    norm, x = norm.to(dtype), large[:, :, :16].flatten(2).mT.contiguous().to(dtype)
    output = norm(x)
    exact = x.double()
    centered = exact - exact.mean(-1, keepdim=True)
    normal = centered / (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    assert output.isfinite().all()
    assert (output.double() - (normal * norm.weight.double() + norm.bias.double())).abs().max() <= TOLERANCE[dtype]


def test_variance_is_biased():
    """Two numbers -1 and 1: biased variance 1, unbiased 2."""
    norm = nn.GroupNorm(1, 2, eps=1e-12)
    assert torch.allclose(norm(torch.tensor([[[[-1.0]], [[1.0]]]])).flatten(), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_res_block_of_large_activations_stays_finite(large, dtype):
    """On a corner of the picture and with 32 outputs: PyTorch's f16 convolution on CPUs has no fast path, and the whole
    block takes minutes. A group of the corner still sums to 40 times what f16 can hold."""
    block = ResBlock(SHAPE[1], GROUPS, 64, norm_groups=GROUPS, norm_eps=1e-5)
    randomize(block, 2)
    block = block.to(dtype)
    x, embedding = large[:, :, :16, :16].to(dtype), torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    output = block(x, embedding.to(dtype))
    assert output.isfinite().all()
    exact = block.float()(x.float(), embedding.to(dtype).float())
    error = torch.linalg.vector_norm(output.float() - exact) / torch.linalg.vector_norm(exact)
    assert error <= HALF[dtype]


@pytest.mark.parametrize("channels", [2 * GROUPS, (NARROW - 1) * GROUPS, NARROW * GROUPS])
def test_narrow_groups_have_the_same_numbers_gradients_and_layout(channels):
    """PyTorch's own kernel in float64 beside it."""
    norm = GroupNorm(GROUPS, channels)
    randomize(norm, 1)
    x = torch.randn(3, channels, 6, 5, generator=torch.Generator().manual_seed(2))
    x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    norm = norm.to(torch.bfloat16)
    exact, gradients = nn.GroupNorm(GROUPS, channels).double(), []
    exact.load_state_dict(norm.state_dict())
    for module, value in ((norm, x.requires_grad_()), (exact, x.detach().double().requires_grad_())):
        output = module(value)
        assert output.is_contiguous(memory_format=torch.channels_last) == value.is_contiguous(
            memory_format=torch.channels_last
        )
        output.square().sum().backward()
        gradients.append((output.detach().double(), value.grad.double(), module.weight.grad.double()))
    for found, wanted in zip(*gradients, strict=True):
        assert (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("channels", [2 * GROUPS, NARROW * GROUPS])
def test_narrow_groups_do_not_take_the_slow_kernel(channels, monkeypatch):
    seen = []
    monkeypatch.setattr(
        functional, "group_norm", lambda x, *given: seen.append(x.is_contiguous()) or torch.group_norm(x, *given)
    )
    x = torch.randn(2, channels, 4, 4).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(GROUPS, channels)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        norm.to(dtype)(x.to(dtype))
    narrow = channels < NARROW * GROUPS
    assert seen == [narrow, narrow, False], "channels first"
