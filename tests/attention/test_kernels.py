"""Every kernel against attention written out in float64."""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from undertow.attention import chunked
from undertow.attention.catalogue import KERNELS
from undertow.attention.chosen import kernel_named
from undertow.errors import InvalidInput

ON_CPU = [name for name, one in KERNELS.items() if one.exact and (one.devices is None or "cpu" in one.devices)]
NAMES = ("auto", *ON_CPU)
FLOAT32_LOGITS = [name for name in ON_CPU if KERNELS[name].float32_logits]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest difference for values of size one: a few roundings of the type; the chunked kernel also rounds its scores."""


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _inputs(queries: int, keys: int, *, batch: int = 2, heads: int = 3, head_dim: int = 8) -> tuple[Tensor, ...]:
    return (
        _normal(batch, heads, queries, head_dim, seed=1),
        _normal(batch, heads, keys, head_dim, seed=2),
        _normal(batch, heads, keys, head_dim, seed=3),
    )


def _oracle(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Row by row, over the admitted keys only; an empty row gives zeros."""
    query, key, value = query.double(), key.double(), value.double()
    output = torch.zeros_like(query)
    admitted = torch.ones(*query.shape[:3], key.shape[2], dtype=torch.bool) if mask is None else mask
    admitted = admitted.expand(*query.shape[:3], key.shape[2])
    for place in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        batch, head, row = place
        keep = admitted[batch, head, row]
        if keep.any():
            scores = key[batch, head, keep] @ query[batch, head, row] / query.shape[-1] ** 0.5
            output[batch, head, row] = scores.softmax(0) @ value[batch, head, keep]
    return output


def _mask(*shape: int, empty: bool = False) -> Tensor:
    """Random, each row with at least one key; with `empty`, one row of the first picture has none."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[..., 0] = True
    if empty:
        mask[0, 0, 0] = False
    return mask


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (16, 16), (16, 77), (300, 7), (513, 20)], ids=lambda size: str(size)
)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_the_formula(name, queries, keys, dtype):
    query, key, value = (tensor.to(dtype) for tensor in _inputs(queries, keys, batch=1, heads=2))
    output = kernel_named(name)(query, key, value)
    assert output.dtype == dtype
    assert (output.double() - _oracle(query, key, value)).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 9), (2, 3, 1, 9), (2, 1, 20, 9), (2, 3, 20, 9)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("name", NAMES)
def test_masks_broadcast_over_heads_and_queries(name, shape, empty, dtype):
    """Trap T9: an empty row gives zeros, in every type."""
    query, key, value = (tensor.to(dtype) for tensor in _inputs(20, 9))
    mask = _mask(*shape, empty=empty)
    output = kernel_named(name)(query, key, value, mask)
    assert output.isfinite().all()
    assert (output.double() - _oracle(query, key, value, mask)).abs().max() <= TOLERANCE[dtype]
    if empty:
        assert not output[0, 0, 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_masks_follow_their_queries_through_the_chunks(name):
    query, key, value = (tensor.float() for tensor in _inputs(600, 9, batch=1, heads=1))
    mask = _mask(1, 1, 600, 9)
    output = kernel_named(name)(query, key, value, mask)
    assert (output.double() - _oracle(query, key, value, mask)).abs().max() <= TOLERANCE[torch.float32]


LARGE = {torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
"""Relative error over thousands of keys: rounded inputs and results (2^-11, 2^-8), rounded scores if chunked."""


@pytest.mark.parametrize(
    ("queries", "keys", "dtype"),
    [(4096, 4096, torch.float16), (300, 16384, torch.float16), (300, 16384, torch.bfloat16)],
    ids=["4k", "16k", "16k-bfloat16"],
)
@pytest.mark.parametrize("name", NAMES)
def test_large_sequences_in_half_precision_equal_the_formula(name, queries, keys, dtype):
    """R188: 64 x 64 and 128 x 128 cells. Of 16k only some queries, as many as fill a chunk and begin another.

    A row of ones among the values adds up to the number of keys where weights are summed before they are divided: more
    than 2048 cannot be counted one by one in float16.
    """
    query, key, value = (tensor.to(dtype) for tensor in _inputs(queries, keys, batch=1, heads=1, head_dim=16))
    value[..., -1] = 1
    output = kernel_named(name)(query, key, value)
    rows = torch.arange(0, queries, 37)
    scores = query[:, :, rows].double() @ key.double().mT / 4
    expected = scores.softmax(-1) @ value.double()
    found = output[:, :, rows].double()
    assert (found[..., -1] - 1).abs().max() <= TOLERANCE[dtype]
    assert (found - expected)[..., :-1].norm() / expected[..., :-1].norm() <= LARGE[dtype]


class Sizes(TorchFunctionMode):
    """The elements of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.made: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made += [part.numel() for part in tree_leaves(result) if isinstance(part, Tensor)]
        return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "block", "most"),
    [
        (3, 2, 7 * 128, 7 * 128),
        (1, 1, 7 * 128, 7 * 128),
        (3, 2, 60 * 128, 60 * 128),
        (1, 2, 60 * 128 + 9, 60 * 128),
        (3, 2, 2 * 60 * 128 + 9, 2 * 60 * 128),
        (3, 2, 10**6, 3 * 2 * 60 * 128),
    ],
    ids=["queries", "queries-of-one", "heads", "heads-of-one", "rows", "all"],
)
def test_the_chunked_kernel_makes_the_scores_of_a_block_at_a_time(monkeypatch, rows, heads, block, most, masked):
    """Of some queries of a head, of some heads of a row, of some rows, or all at once."""
    monkeypatch.setattr(chunked, "BLOCK", block)
    query, key, value = (tensor.float() for tensor in _inputs(60, 128, batch=rows, heads=heads, head_dim=2))
    mask = _mask(rows, 1, 60, 128) if masked else None
    with Sizes() as sizes:
        output = kernel_named("chunked")(query, key, value, mask)
    assert max(sizes.made) == (rows * heads * 60 * 128 if masked else most), "a view of the whole mask is free"
    assert (output.double() - _oracle(query, key, value, mask)).abs().max() <= TOLERANCE[torch.float32]


class Attention(torch.nn.Module):
    forward = staticmethod(chunked.chunked_attention)


@pytest.mark.parametrize(("block", "operators"), [(7 * 128, 1), (10**6, 0)], ids=["several", "one"])
@pytest.mark.parametrize("masked", [False, True])
def test_in_a_graph_several_blocks_are_one_operator(monkeypatch, block, operators, masked):
    """One block is written out, for the compiler to join with what is around it. Several have fewer queries than a head
    is wide."""
    monkeypatch.setattr(chunked, "BLOCK", block)
    given = [*_inputs(60, 128), *([_mask(2, 1, 60, 128)] if masked else [])]
    with torch.no_grad():
        program = torch.export.export(Attention(), tuple(given), strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("undertow.chunked_attention.default") == operators
    assert names.count("aten.softmax.int") == 1 - operators
    torch.testing.assert_close(program.module()(*given), _oracle(*given))
    with torch.enable_grad():
        trained = torch.export.export(Attention(), tuple(one.clone() for one in given), strict=False)
    assert not any("undertow" in str(node.target) for node in trained.graph.nodes), "an operator has no backward pass"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_with_empty_rows(name, dtype):
    inputs = [tensor.to(dtype).requires_grad_() for tensor in _inputs(20, 9)]
    kernel_named(name)(*inputs, _mask(2, 1, 20, 9, empty=True)).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    assert not inputs[0].grad[0, :, 0].any(), "an empty row asks for nothing"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_the_formulas(name):
    ours = [tensor.requires_grad_() for tensor in _inputs(20, 9)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    mask, weight = _mask(2, 1, 20, 9), _normal(2, 3, 20, 8, seed=9)
    (kernel_named(name)(*ours, mask) * weight).sum().backward()
    scores = (theirs[0] @ theirs[1].mT / 8**0.5).masked_fill(~mask, -torch.inf)
    (scores.softmax(-1) @ theirs[2] * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad - b.grad).abs().max() <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FLOAT32_LOGITS)
def test_scores_beyond_float16_stay_exact(name, masked):
    """Products of magnitude 1e6, far over float16's 65504. A masked key must not return, however large its score."""
    query, key, value = (tensor.to(torch.float16) for tensor in _inputs(20, 9, head_dim=64))
    query, key = query * 200, key * 200
    assert (query.float() @ key.float().mT).abs().max() > 10 * torch.finfo(torch.float16).max
    mask = _mask(2, 1, 20, 9, empty=True) if masked else None
    output = kernel_named(name, float32_logits=True)(query, key, value, mask)
    assert output.isfinite().all()
    assert (output.double() - _oracle(query, key, value, mask)).abs().max() <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ON_CPU)
def test_what_all_keys_have_in_common_costs_no_precision(name, masked):
    """Scores of up to 40, which a type of 8 bits rounds by an eighth, as far from each other as elsewhere. One key that
    no query admits lies far away."""
    query, key, value = _inputs(20, 9)
    key = key + 16
    mask = _mask(2, 1, 20, 9) if masked else None
    if mask is not None:
        mask[..., 3] = False
        key[:, :, 3] = 1000
    inputs = [tensor.bfloat16() for tensor in (query, key, value)]
    output = kernel_named(name)(*inputs, mask)
    assert (output.double() - _oracle(*inputs, mask)).abs().max() <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name):
    inputs = [tensor.float() for tensor in _inputs(20, 9)]
    copies = [tensor.clone() for tensor in inputs]
    kernel_named(name)(*inputs, _mask(2, 1, 1, 9))
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        InvalidInput, match=r"'flash3'.*auto, speed, memory, balanced, math, sdpa, chunked.*did you mean 'flash'"
    ) as caught:
        kernel_named("flash3")
    assert caught.value.argument == "attention"


def test_a_kernel_without_float32_scores_is_refused_where_the_model_needs_them():
    with pytest.raises(InvalidInput, match=r"'chunked'.*float32.*use math or sdpa"):
        kernel_named("chunked", float32_logits=True)
    for name in (*FLOAT32_LOGITS, "auto"):
        assert callable(kernel_named(name, float32_logits=True))
