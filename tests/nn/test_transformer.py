"""GEGLU (trap T2), and the order and the projections of the transformer."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.golden.minis import randomize
from undertow.attention.math import math_attention
from undertow.nn.attention import AttentionInputs, AttentionMaps, AttentionProjections, ImageTokens, attention_received
from undertow.nn.feedforward import GEGLU, FeedForward
from undertow.nn.perturbation import PerturbedRows
from undertow.nn.transformer import SpatialTransformer, TransformerBlock

TOLERANCE = 1e-5
"""float32, another order of the same sums."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spatial(depth: int = 2, *, linear: bool = True) -> SpatialTransformer:
    made = SpatialTransformer(16, 2, depth, 10, norm_groups=4, linear_projection=linear, kernel=math_attention)
    randomize(made, 1)
    for name, module in made.named_modules():
        if isinstance(module, AttentionProjections):
            module.site = name
    return made


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
    x, inputs = normal(2, 6, 16, seed=2), AttentionInputs(context=normal(2, 5, 10, seed=3))
    expected = x + block.attn1(block.norm1(x))
    expected = expected + block.attn2(block.norm2(expected), inputs)
    expected = expected + block.ff(block.norm3(expected))
    assert torch.equal(block(x, inputs), expected)
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
    x, inputs = normal(2, 16, *shape, seed=2), AttentionInputs(context=normal(2, 5, 10, seed=3))
    assert torch.allclose(made[False](x, inputs), made[True](x, inputs), atol=1e-5)
    assert made[True].norm.eps == 1e-6, "the transformer's GroupNorm has an epsilon of its own"
    assert len(made[True].transformer_blocks) == 2


@pytest.mark.parametrize("linear", [True, False])
@torch.no_grad()
def test_cells_go_through_the_blocks_row_by_row_between_the_projections(linear):
    made, x = spatial(linear=linear), normal(2, 16, 3, 5, seed=2)
    inputs = AttentionInputs(context=normal(2, 5, 10, seed=3))
    groups = x.unflatten(1, (4, -1)).flatten(2)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
    hidden = ((groups - mean) / (variance + 1e-6).sqrt()).view_as(x)
    hidden = hidden * made.norm.weight[:, None, None] + made.norm.bias[:, None, None]
    tokens = torch.stack([hidden[:, :, i, j] for i in range(3) for j in range(5)], dim=1)
    matrices = [(layer.weight.flatten(1), layer.bias) for layer in (made.proj_in, made.proj_out)]
    tokens = tokens @ matrices[0][0].T + matrices[0][1]
    for block in made.transformer_blocks:
        tokens = block(tokens, inputs)
    tokens = tokens @ matrices[1][0].T + matrices[1][1]
    expected = x + torch.stack([tokens[:, 5 * i : 5 * i + 5] for i in range(3)], dim=1).permute(0, 3, 1, 2)
    assert (made(x, inputs) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_every_attention_receives_the_whole_record_and_takes_what_concerns_it():
    """The mask, over tokens of the text, would not fit the self-attention over cells."""
    made, x, received = spatial(), normal(2, 16, 3, 5, seed=2), []
    given = AttentionInputs(context=normal(2, 5, 10, seed=3))
    plain = made(x, given)
    tokens = ImageTokens(keys=normal(2, 4, 16, seed=4), values=normal(2, 4, 16, seed=5), gain=torch.ones(2))
    changes = {
        "mask": torch.arange(5).expand(2, 1, 1, 5) < 3,
        "image": {"transformer_blocks.1.attn2": (tokens,)},
        "perturbed": {"transformer_blocks.1.attn1": PerturbedRows(blur=torch.full((2,), 1.0))},
    }
    for name, value in changes.items():
        assert (made(x, replace(given, **{name: value})) - plain).abs().max() > 100 * TOLERANCE
    for module in made.modules():
        if isinstance(module, AttentionProjections):
            module.register_forward_pre_hook(lambda module, inputs: received.append((module.site, inputs[1])))
    made(x, replace(given, **changes))
    assert [site.split(".")[-1] for site, _ in received] == 2 * ["attn1", "attn2"]
    assert all(inputs is received[0][1] for _, inputs in received)
    assert received[0][1] == replace(given, **changes, height=3)


@pytest.mark.parametrize("linear", [True, False])
@torch.no_grad()
def test_maps_of_attention_received_have_the_shape_of_the_feature_map(linear):
    made, x, seen = spatial(linear=linear), normal(2, 16, 3, 5, seed=2), []
    last = made.transformer_blocks[1].attn1
    last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    maps = AttentionMaps(sites=("transformer_blocks.1.attn1",))
    made(x, AttentionInputs(context=normal(2, 5, 10, seed=3), maps=maps))
    query, key = (project(seen[0]).unflatten(-1, (2, -1)).transpose(1, 2) for project in (last.to_q, last.to_k))
    assert list(maps.found) == list(maps.sites)
    assert torch.equal(maps.found[maps.sites[0]], attention_received(query, key).reshape(2, 3, 5))
