"""GEGLU (trap T2), and the order and the projections of the transformer."""

import math

import pytest
import torch

from tests.golden.minis import randomize
from undertow.attention.math import math_attention
from undertow.nn.feedforward import GEGLU, FeedForward
from undertow.nn.transformer import SpatialTransformer, TransformerBlock


def test_the_gate_is_the_second_half_under_the_exact_gelu():
    """x = 1, projected to value 3 and gate 2: 3 x 2 x Phi(2). The tanh approximation is 2e-4 off, SiLU 0.2."""
    layer = GEGLU(1, 1)
    with torch.no_grad():
        layer.proj.weight.copy_(torch.tensor([[3.0], [2.0]]))
        layer.proj.bias.zero_()
    expected = 3 * 2 * 0.5 * (1 + math.erf(2 / math.sqrt(2)))
    assert layer(torch.ones(1, 1, 1)).item() == pytest.approx(expected, abs=1e-6)


def test_feed_forward_widens_four_times():
    layer = FeedForward(8)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "net.0.proj.weight": (64, 8),
        "net.0.proj.bias": (64,),
        "net.2.weight": (8, 32),
        "net.2.bias": (8,),
    }


@torch.no_grad()
def test_a_block_is_self_attention_then_text_then_feed_forward():
    block = TransformerBlock(16, 2, 10, kernel=math_attention)
    randomize(block, 1)
    x, context = torch.randn(2, 6, 16), torch.randn(2, 5, 10)
    expected = x + block.attn1(block.norm1(x))
    expected = expected + block.attn2(block.norm2(expected), context)
    expected = expected + block.ff(block.norm3(expected))
    assert torch.equal(block(x, context), expected)
    assert block.norm1.eps == 1e-5


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 7)])
@torch.no_grad()
def test_linear_and_convolutional_projections_are_the_same_numbers(shape):
    """Loading SD1's 1x1 convolutions as matrices is exact."""
    made = {
        linear: SpatialTransformer(16, 2, 2, 10, norm_groups=4, linear_projection=linear, kernel=math_attention)
        for linear in (False, True)
    }
    randomize(made[False], 1)
    state = made[False].state_dict()
    made[True].load_state_dict(
        {name: value.squeeze((2, 3)) if value.ndim == 4 else value for name, value in state.items()}
    )
    x, context = torch.randn(2, 16, *shape), torch.randn(2, 5, 10)
    assert torch.allclose(made[False](x, context), made[True](x, context), atol=1e-5)
    assert made[True].norm.eps == 1e-6, "the transformer's GroupNorm has an epsilon of its own"
    assert len(made[True].transformer_blocks) == 2
