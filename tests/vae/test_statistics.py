"""Statistics gathered in parts equal those of the whole, also where a sum of squares would cancel."""

import pytest
import torch
from torch import nn

from undertow.vae.statistics import Moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_parts_equal_the_whole(offset, dtype):
    x = (torch.randn(2, 12, 9, 7, generator=torch.Generator().manual_seed(0)) + offset).to(dtype)
    moments = Moments(4)
    for part in (x[:, :, :4, :3], x[:, :, :4, 3:], x[:, :, 4:, :]):
        moments.add(part)
    found, groups = moments.finish(), x.double().reshape(2, 4, -1)
    assert torch.allclose(found.mean, groups.mean(-1), rtol=1e-6, atol=1e-7)
    assert torch.allclose(found.variance, groups.var(-1, correction=0), rtol=1e-4)


def test_scale_and_shift_are_group_norm():
    norm = nn.GroupNorm(4, 12, 1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    moments = Moments(4)
    moments.add(x)
    scale, shift = moments.finish().affine(norm)
    assert torch.allclose(x * scale + shift, norm(x), atol=1e-5)
