"""Padding, the kernels of CUDA as far as a CPU can tell, and the approximate kernel."""

import pytest
import torch

from undertow.attention.catalogue import KERNELS
from undertow.attention.fused import cudnn_attention, efficient_attention, flash_attention
from undertow.attention.kernel import Requirements
from undertow.attention.local import local_attention
from undertow.attention.math import math_attention
from undertow.attention.padding import cut_head_dim, pad_head_dim


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("head_dim", "multiple", "padded"), [(40, 64, 64), (40, 8, 40), (33, 8, 40), (160, 64, 192)])
def test_padded_heads_give_the_same_attention(head_dim, multiple, padded):
    """R138: with the scale of the true width; that of the padded one would be off by sqrt(40 / 64)."""
    query, key, value = (normal(1, 2, 9, head_dim, seed=seed) for seed in range(3))
    wide = [pad_head_dim(x, multiple) for x in (query, key, value)]
    assert {x.shape[-1] for x in wide} == {padded}
    scaled = wide[0] * (padded / head_dim) ** 0.5  # the kernel written out scales by the width that it sees
    output = math_attention(scaled, wide[1], wide[2])
    assert not output[..., head_dim:].any()
    torch.testing.assert_close(cut_head_dim(output, head_dim), math_attention(query, key, value), rtol=0, atol=1e-12)


def test_heads_that_fit_are_not_copied():
    heads = torch.zeros(1, 1, 2, 40)
    assert pad_head_dim(heads, 8) is heads


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head_dim", [40, 36])
@pytest.mark.parametrize("kernel", [flash_attention, efficient_attention, cudnn_attention])
def test_the_operators_of_cuda_take_what_they_are_given(kernel, head_dim, masked):
    """On the meta device, where PyTorch has their signatures; widths that are no multiple of 8 are padded."""
    query = torch.empty(2, 3, 20, head_dim, dtype=torch.float16, device="meta")
    key = torch.empty(2, 3, 9, head_dim, dtype=torch.float16, device="meta")
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool, device="meta") if masked else None
    if masked and kernel is flash_attention:
        with pytest.raises(RuntimeError, match="takes no masks"):
            kernel(query, key, key, mask)
        return
    output = kernel(query, key, key, mask)
    assert output.shape == query.shape
    assert output.dtype == torch.float16


def call(**changes: object) -> Requirements:
    return Requirements(**({"device": "cuda", "dtype": torch.float16, "queries": 64, "keys": 64} | changes))


@pytest.mark.parametrize(
    ("name", "changes", "lacks"),
    [
        ("flash", {}, None),
        ("flash", {"masked": True}, "no masks"),
        ("flash", {"masked": True, "device": "cpu"}, None),
        ("flash", {"dtype": torch.float32}, "half precision"),
        ("flash", {"dtype": torch.float32, "device": "cpu"}, None),
        ("flash", {"device": "mps"}, "runs on cpu and cuda only"),
        ("efficient", {"dtype": torch.float32, "masked": True}, None),
        ("efficient", {"device": "cpu"}, "runs on cuda only"),
        ("cudnn", {"masked": True}, None),
        ("cudnn", {"dtype": torch.float32}, "half precision"),
        ("xformers", {}, "not installed"),
        ("chunked", {"float32_logits": True}, "float32 scores"),
        ("sliced", {"float32_logits": True, "masked": True}, None),
    ],
)
def test_kernels_say_what_they_lack(name, changes, lacks):
    """PyTorch's documentation of scaled_dot_product_attention, and torch.backends.cuda.can_use_flash_attention."""
    found = KERNELS[name].lacks(call(**changes))
    assert found is None if lacks is None else lacks in found


def test_local_attention_is_exact_where_its_blocks_see_everything():
    query, key, value = (normal(1, 2, 32, 8, seed=seed) for seed in range(3))
    for tokens in (16, 32):
        output = local_attention(query, key[:, :, :tokens], value[:, :, :tokens], block=16)
        expected = math_attention(query, key[:, :, :tokens], value[:, :, :tokens])
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_local_attention_sees_its_own_block_and_two_neighbors(masked):
    """By a mask of the same band over attention written out; 70 tokens in blocks of 16, of which the last has 6."""
    query, key, value = (normal(2, 2, 70, 8, seed=seed) for seed in range(3))
    block = torch.arange(70) // 16
    band = ((block[:, None] - block[None]).abs() <= 1)[None, None]
    mask = normal(2, 1, 70, 70, seed=9) > 0 if masked else None
    output = local_attention(query, key, value, mask, block=16)
    expected = math_attention(query, key, value, band.expand(2, -1, -1, -1) if mask is None else band & mask)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(output, math_attention(query, key, value, mask), atol=1e-2), "it approximates"
