"""AttentionConfig (R22, R23): the settings of source document 000 and what they compute."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from undertow.attention.config import AttentionConfig
from undertow.attention.math import math_attention
from undertow.attention.sdpa import sdpa_attention
from undertow.errors import ConfigError, MissingDependency

TOLERANCE = 1e-6  # float32 rounding over 16 keys


def by_hand(query, key, value, heads, mask=None):
    split = [x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    scores = split[0] @ split[1].mT / split[0].shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2).float()


@pytest.mark.parametrize("flash", [True, False])
def test_both_kernels_compute_scaled_dot_product_attention_per_head(flash):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 24, generator=generator) for tokens in (9, 16, 16))
    mask = torch.rand(2, 1, 1, 16, generator=generator) > 0.4
    mask[..., 0] = True
    config = AttentionConfig(num_heads=3, head_dim=8, use_flash_attention=flash)

    torch.testing.assert_close(
        config.calculate_attention(query, key, value, mask), by_hand(query, key, value, 3, mask), rtol=0, atol=TOLERANCE
    )


def test_dropout_drops_weights_and_keeps_their_mean():
    config = AttentionConfig(num_heads=1, head_dim=4, dropout=0.5)
    query, key = torch.zeros(1, 1, 4), torch.zeros(1, 200, 4)
    value = torch.ones(1, 200, 4)
    torch.manual_seed(0)

    outputs = torch.stack([config.calculate_attention(query, key, value)[0, 0, 0] for _ in range(100)])

    assert outputs.std() > 0.01  # another draw each time
    assert abs(outputs.mean() - 1) < 0.05  # 100 means over 200 weights, each of standard deviation 1


def test_dropout_keeps_to_the_mask():
    """A masked key is never among those kept, and a query that sees none gets zeros (trap T9)."""
    config = AttentionConfig(num_heads=2, head_dim=4, dropout=0.5)
    query, key = torch.zeros(1, 3, 8), torch.zeros(1, 50, 8)
    value = torch.ones(1, 50, 8)
    value[:, 25:] = 1e6
    mask = (torch.arange(50) < 25).expand(1, 1, 3, 50).clone()
    mask[..., 2, :] = False
    torch.manual_seed(0)
    output = config.calculate_attention(query, key, value, mask)
    assert not output[:, 2].any()
    assert 0.2 < output[:, :2].min() <= output[:, :2].max() < 2  # 25 weights of 1/25, half of them doubled


def test_settings_without_a_word_are_the_fused_kernel_without_dropout():
    config = AttentionConfig(num_heads=1, head_dim=1, dropout=0.0)
    assert config == AttentionConfig(num_heads=1, head_dim=1, use_flash_attention=True, use_xformers=False)
    assert config.kernel is sdpa_attention
    assert AttentionConfig(num_heads=1, head_dim=1, use_flash_attention=False).kernel is math_attention


@pytest.mark.parametrize("masked", [False, True])
def test_xformers_receives_tokens_before_heads_and_a_bias(monkeypatch, masked):
    """Its kernel runs on CUDA only; here a function with its documented layout, [batch, tokens, heads, head_dim]."""

    def memory_efficient_attention(query, key, value, attn_bias=None):
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        scores = scores if attn_bias is None else scores + attn_bias
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)

    operations = ModuleType("xformers.ops")
    operations.memory_efficient_attention = memory_efficient_attention
    found = ModuleType("xformers")
    found.__spec__ = ModuleSpec("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", found)
    monkeypatch.setitem(sys.modules, "xformers.ops", operations)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 24, generator=generator) for tokens in (9, 16, 16))
    mask = torch.rand(2, 1, 9, 16, generator=generator) > 0.4 if masked else None
    expected = by_hand(query, key, value, 3, mask)
    if mask is not None:
        mask[0, 0, 4] = False
        expected[0, 4] = 0
    config = AttentionConfig(num_heads=3, head_dim=8, use_xformers=True)
    torch.testing.assert_close(config.calculate_attention(query, key, value, mask), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"num_heads": 0, "head_dim": 8}, "num_heads"),
        ({"num_heads": 8, "head_dim": 0}, "head_dim"),
        ({"num_heads": 8, "head_dim": 8, "dropout": 1.0}, "dropout"),
        ({"num_heads": 8, "head_dim": 8, "dropout": -0.1}, "dropout"),
        ({"num_heads": 8, "head_dim": 8, "dropout": 0.1, "use_xformers": True}, "use_xformers"),
    ],
)
def test_impossible_settings_are_refused_by_field(settings, field):
    with pytest.raises(ConfigError) as refusal:
        AttentionConfig(**settings)
    assert refusal.value.field == field


def test_a_width_that_is_not_heads_times_head_dim_is_refused():
    with pytest.raises(ConfigError, match="must be the width of the query, 25"):
        AttentionConfig(num_heads=3, head_dim=8).calculate_attention(*[torch.zeros(1, 2, 25)] * 3)


def test_xformers_that_is_not_installed_is_named():
    with pytest.raises(MissingDependency, match=r"undertow\[xformers\]"):
        AttentionConfig(num_heads=3, head_dim=8, use_xformers=True)
