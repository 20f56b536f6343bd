"""Projections around a kernel, and the image port."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.golden.minis import randomize
from undertow.attention.math import math_attention
from undertow.nn.attention import (
    Attention,
    AttentionInputs,
    AttentionMaps,
    AttentionProjections,
    ImageTokens,
    SpatialSelfAttention,
)
from undertow.nn.perturbation import PerturbedRows, blur_queries

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


def run(layer: Attention | SpatialSelfAttention, x: Tensor, **inputs: object) -> Tensor:
    return layer(x, AttentionInputs(**inputs))


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
    assert (run(layer, x, context=context) - expected).abs().max() <= TOLERANCE


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
    assert (run(layer, x, context=context, image={"here": (tokens,)}) - expected).abs().max() <= TOLERANCE


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
    assert (run(layer, x, context=context, image={"here": (one, other)}) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_image_tokens_of_another_site_do_nothing_here():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    tokens = ImageTokens(keys=_normal(2, 3, DIM, seed=4), values=_normal(2, 3, DIM, seed=5), gain=torch.ones(2))
    assert torch.equal(run(layer, x, context=context, image={"there": (tokens,)}), run(layer, x, context=context))


@torch.no_grad()
def test_a_row_without_image_tokens_gets_none():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    tokens = ImageTokens(keys=_normal(2, 3, DIM, seed=4), values=_normal(2, 3, DIM, seed=5), gain=torch.ones(2))
    masked = replace(tokens, mask=torch.tensor([[True] * 3, [False] * 3]))
    output = run(layer, x, context=context, image={"here": (masked,)})
    assert torch.allclose(output[0], run(layer, x, context=context, image={"here": (tokens,)})[0], atol=TOLERANCE)
    assert torch.allclose(output[1], run(layer, x, context=context)[1], atol=TOLERANCE)


def test_projections_have_the_biases_of_their_kind():
    """Those of transformers have none but the last (arXiv:2112.10752); those of feature maps all have one."""
    names = {name for name, _ in _layer().named_parameters()}
    weights = {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"}
    assert names == weights | {"to_out.0.bias"}
    spatial = {name for name, _ in _spatial().named_parameters() if not name.startswith("group_norm")}
    assert spatial == weights | {"to_q.bias", "to_k.bias", "to_v.bias", "to_out.0.bias"}


@torch.no_grad()
def test_masks_and_images_keep_the_type_of_the_layer():
    """Gains and areas are float32 whatever the weights are."""
    layer = _layer().to(torch.bfloat16)
    x, context = (_normal(2, n, w, seed=n).bfloat16() for n, w in ((9, DIM), (5, CONTEXT)))
    keys, values = (_normal(2, 3, DIM, seed=seed).bfloat16() for seed in (4, 5))
    tokens = ImageTokens(keys=keys, values=values, gain=torch.tensor([0.7, 2.0]), area=torch.ones(2, 9))
    assert run(layer, x, context=context, image={"here": (tokens,)}).dtype == torch.bfloat16


@torch.no_grad()
def test_the_mask_hides_text_and_not_pictures():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    tokens = ImageTokens(keys=_normal(2, 5, DIM, seed=4), values=_normal(2, 5, DIM, seed=5), gain=torch.ones(2))
    seen = torch.tensor([True, True, False, True, False])
    masked = run(layer, x, context=context, mask=seen.expand(2, 1, 1, 5), image={"here": (tokens,)})
    expected = run(layer, x, context=context[:, seen], image={"here": (tokens,)})
    assert (masked - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_gain_with_an_area_is_their_product():
    layer, x, context = _layer(), _normal(2, 9, DIM, seed=2), _normal(2, 5, CONTEXT, seed=3)
    area = torch.rand(2, 9, generator=torch.Generator().manual_seed(8))
    tokens = ImageTokens(keys=_normal(2, 3, DIM, seed=4), values=_normal(2, 3, DIM, seed=5), gain=torch.ones(2))
    scaled = replace(tokens, gain=torch.tensor([0.5, 3.0]), area=area)
    expected = replace(tokens, area=area * torch.tensor([0.5, 3.0])[:, None])
    outputs = [run(layer, x, context=context, image={"here": (one,)}) for one in (scaled, expected)]
    assert (outputs[0] - outputs[1]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_perturbed_row_keeps_its_values_or_asks_with_blurred_queries():
    """At this site alone, and in the map whose height is given."""
    layer, x = _layer(None), _normal(3, 12, DIM, seed=2)
    change = PerturbedRows(identity=torch.tensor([True, False, False]), blur=torch.tensor([0.0, 0.0, 1.5]))
    found, plain = run(layer, x, perturbed={"here": change}, height=3), layer(x)
    query, key, value = (x @ project.weight.T for project in (layer.to_q, layer.to_k, layer.to_v))
    blurred = _heads_one_by_one(blur_queries(query, change.blur, 3), key, value)
    for row, mixed in ((0, value[0]), (2, blurred[2])):
        expected = mixed @ layer.to_out[0].weight.T + layer.to_out[0].bias
        assert (found[row] - expected).abs().max() <= TOLERANCE
        assert (found[row] - plain[row]).abs().max() > 100 * TOLERANCE
    assert torch.equal(found[1], plain[1])
    assert torch.equal(run(layer, x, perturbed={"there": change}, height=3), plain)


def _received_by_hand(x: Tensor, layer: AttentionProjections) -> Tensor:
    """Each query's weights over the keys, in float64; what a key got from all queries, the mean over heads."""
    query, key = (p(x).double().unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (layer.to_q, layer.to_k))
    weights = (query @ key.mT / (DIM // HEADS) ** 0.5).softmax(-1)
    return weights.sum(2).mean(1)


def _observed(layer: Attention | SpatialSelfAttention, x: Tensor, **inputs: object) -> Tensor:
    """The map of attention received; the layer's output is the same as without it."""
    maps = AttentionMaps(sites=("here", "there"))
    assert torch.equal(run(layer, x, maps=maps, **inputs), run(layer, x, **inputs))
    assert list(maps.found) == ["here"]
    return maps.found["here"]


@torch.no_grad()
def test_attention_received_is_the_sum_over_queries():
    layer, x = _layer(None), 2 * _normal(2, 15, DIM, seed=2)
    received = _observed(layer, x, height=3)
    assert (received - _received_by_hand(x, layer).reshape(2, 3, 5)).abs().max() <= TOLERANCE
    assert (received.mean((1, 2)) - 1).abs().max() <= TOLERANCE
    assert received.std() > 0.1
    assert _observed(layer.bfloat16(), x.bfloat16(), height=3).dtype == torch.float32


@torch.no_grad()
def test_what_is_observed_is_the_attention_before_it_is_perturbed():
    layer, x = _layer(None), 2 * _normal(2, 15, DIM, seed=2)
    change = PerturbedRows(identity=torch.tensor([True, False]), blur=torch.tensor([0.0, 1.5]))
    perturbed = _observed(layer, x, height=3, perturbed={"here": change})
    assert torch.equal(perturbed, _observed(layer, x, height=3))


@torch.no_grad()
def test_a_layer_that_is_not_observed_adds_nothing():
    maps = AttentionMaps(sites=("there",))
    run(_layer(None), _normal(2, 15, DIM, seed=2), maps=maps, height=3)
    assert maps.found == {}


def _spatial() -> SpatialSelfAttention:
    layer = SpatialSelfAttention(DIM, HEADS, norm_groups=4, norm_eps=0.5, kernel=math_attention)
    randomize(layer, 1)
    layer.site = "here"
    return layer


@torch.no_grad()
def test_the_map_of_attention_received_has_the_shape_of_the_picture():
    layer, x = _spatial(), 3 * _normal(2, DIM, 3, 5, seed=2)
    tokens = layer.group_norm(x).permute(0, 2, 3, 1).reshape(2, 15, DIM)
    expected = _received_by_hand(tokens, layer).reshape(2, 3, 5)
    assert (_observed(layer, x) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_spatial_attention_blurs_in_the_shape_of_the_picture():
    layer, x = _spatial(), _normal(1, DIM, 3, 5, seed=2)
    tokens = layer.group_norm(x).permute(0, 2, 3, 1).reshape(1, 15, DIM)
    sigma = torch.tensor([1.0])
    query, key, value = (tokens @ p.weight.T + p.bias for p in (layer.to_q, layer.to_k, layer.to_v))
    mixed = _heads_one_by_one(blur_queries(query, sigma, 3), key, value) @ layer.to_out[0].weight.T
    expected = x + (mixed + layer.to_out[0].bias).reshape(1, 3, 5, DIM).permute(0, 3, 1, 2)
    found = run(layer, x, perturbed={"here": PerturbedRows(blur=sigma)})
    assert (found - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_spatial_attention_normalizes_attends_and_adds():
    layer = _spatial()
    x = _normal(2, DIM, 3, 5, seed=2)
    groups = x.unflatten(1, (4, -1)).flatten(2)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 0.5).sqrt()
    normal = normal.view_as(x) * layer.group_norm.weight[:, None, None] + layer.group_norm.bias[:, None, None]
    tokens = normal.permute(0, 2, 3, 1).reshape(2, 15, DIM)
    query, key, value = (tokens @ p.weight.T + p.bias for p in (layer.to_q, layer.to_k, layer.to_v))
    mixed = _heads_one_by_one(query, key, value) @ layer.to_out[0].weight.T + layer.to_out[0].bias
    expected = x + mixed.reshape(2, 3, 5, DIM).permute(0, 3, 1, 2)
    assert (layer(x) - expected).abs().max() <= TOLERANCE
