"""Projections around a kernel, and the image port."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.golden.minis import randomize
from undertow.attention.math import math_attention
from undertow.nn.attention import Attention, ImageTokens, SpatialSelfAttention

TOLERANCE = 1e-5
"""float32, another order of the same sums."""

DIM, HEADS, CONTEXT = 16, 4, 10


def _layer(context_dim: int | None = CONTEXT) -> Attention:
    layer = Attention(DIM, HEADS, context_dim=context_dim, kernel=math_attention)
    randomize(layer, 1)
    layer.site = "here"
    return layer


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _heads_one_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each head is a slice of neighbouring channels."""
    width = DIM // HEADS
    parts = []
    for head in range(HEADS):
        q, k, v = (tensor[..., head * width : (head + 1) * width] for tensor in (query, key, value))
        parts.append((q @ k.mT / width**0.5).softmax(-1) @ v)
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("cross", [False, True])
@torch.no_grad()
def test_attention_equals_the_formula(cross):
    layer = _layer(CONTEXT if cross else None)
    x = _normal(2, 9, DIM, seed=2)
    context = _normal(2, 5, CONTEXT, seed=3) if cross else None
    source = x if context is None else context
    mixed = _heads_one_by_one(x @ layer.to_q.weight.T, source @ layer.to_k.weight.T, source @ layer.to_v.weight.T)
    expected = mixed @ layer.to_out[0].weight.T + layer.to_out[0].bias
    assert (layer(x, context) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_image_tokens_are_a_second_attention_of_the_same_queries():
    """O = out(A(Q, K, V) + gain A(Q, K', V')), the output projection applied once (arXiv:2308.06721, Eq. 5)."""
    layer = _layer()
    x, context = _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    keys, values = _normal(2, 3, DIM, seed=4), _normal(2, 3, DIM, seed=5)
    tokens = ImageTokens(keys=keys, values=values, gain=torch.tensor([0.7, 2.0]))
    query = x @ layer.to_q.weight.T
    mixed = _heads_one_by_one(query, context @ layer.to_k.weight.T, context @ layer.to_v.weight.T)
    mixed = mixed + tokens.gain[:, None, None] * _heads_one_by_one(query, keys, values)
    expected = mixed @ layer.to_out[0].weight.T + layer.to_out[0].bias
    assert (layer(x, context, image={"here": (tokens,)}) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_pictures_have_a_softmax_each_and_act_where_they_may():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    one = ImageTokens(keys=_normal(2, 3, DIM, seed=4), values=_normal(2, 3, DIM, seed=5), gain=torch.tensor([0.7, 2.0]))
    other = ImageTokens(
        keys=_normal(2, 6, DIM, seed=6),
        values=_normal(2, 6, DIM, seed=7),
        gain=torch.ones(2),
        area=torch.rand(2, 9, generator=torch.Generator().manual_seed(8)),
    )
    query = x @ layer.to_q.weight.T
    mixed = _heads_one_by_one(query, context @ layer.to_k.weight.T, context @ layer.to_v.weight.T)
    mixed = mixed + one.gain[:, None, None] * _heads_one_by_one(query, one.keys, one.values)
    mixed = mixed + other.area[:, :, None] * _heads_one_by_one(query, other.keys, other.values)
    expected = mixed @ layer.to_out[0].weight.T + layer.to_out[0].bias
    assert (layer(x, context, image={"here": (one, other)}) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_image_tokens_of_another_site_do_nothing_here():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    tokens = ImageTokens(keys=_normal(2, 3, DIM, seed=4), values=_normal(2, 3, DIM, seed=5), gain=torch.ones(2))
    assert torch.equal(layer(x, context, image={"there": (tokens,)}), layer(x, context))


@torch.no_grad()
def test_a_row_without_image_tokens_gets_none():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    tokens = ImageTokens(keys=_normal(2, 3, DIM, seed=4), values=_normal(2, 3, DIM, seed=5), gain=torch.ones(2))
    masked = replace(tokens, mask=torch.tensor([[True] * 3, [False] * 3]))
    output = layer(x, context, image={"here": (masked,)})
    assert torch.allclose(output[0], layer(x, context, image={"here": (tokens,)})[0], atol=TOLERANCE)
    assert torch.allclose(output[1], layer(x, context)[1], atol=TOLERANCE)


@torch.no_grad()
def test_spatial_attention_normalizes_attends_and_adds():
    layer = SpatialSelfAttention(DIM, HEADS, norm_groups=4, norm_eps=1e-5, kernel=math_attention)
    randomize(layer, 1)
    x = _normal(2, DIM, 3, 5, seed=2)
    tokens = layer.group_norm(x).permute(0, 2, 3, 1).reshape(2, 15, DIM)
    query, key, value = (tokens @ p.weight.T + p.bias for p in (layer.to_q, layer.to_k, layer.to_v))
    mixed = _heads_one_by_one(query, key, value) @ layer.to_out[0].weight.T + layer.to_out[0].bias
    expected = x + mixed.reshape(2, 3, 5, DIM).permute(0, 3, 1, 2)
    assert (layer(x) - expected).abs().max() <= TOLERANCE
