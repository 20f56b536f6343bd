"""AttentionConfig (R22, R23): the settings of source document 000 and what they compute."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from undertow.attention.config import AttentionConfig
from undertow.attention.math import math_attention
from undertow.attention.sdpa import sdpa_attention
from undertow.attention.xformers import xformers_attention
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
    query, key, value = (torch.randn(2, count, 24, generator=generator) for count in (9, 16, 16))
    mask = torch.rand(2, 1, 1, 16, generator=generator) > 0.4
    mask[..., 0] = True
    config = AttentionConfig(num_heads=3, head_dim=8, use_flash_attention=flash)

    torch.testing.assert_close(
        config.calculate_attention(query, key, value, mask), by_hand(query, key, value, 3, mask), rtol=0, atol=TOLERANCE
    )


KEYS = 16


def weights_with_dropout(probability: float, mask: torch.Tensor | None, flash: bool = True, seed: int = 0):
    """The weights that a call really used, and those of the formula: values of one 1 each show them in the output."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 9, KEYS, generator=generator), torch.randn(2, KEYS, KEYS, generator=generator)
    value = torch.eye(KEYS).expand(2, -1, -1)
    config = AttentionConfig(num_heads=1, head_dim=KEYS, dropout=probability, use_flash_attention=flash)
    torch.manual_seed(seed)
    return config.calculate_attention(query, key, value, mask), by_hand(query, key, value, 1, mask)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_dropout_drops_whole_weights_and_scales_up_the_others(probability, masked, flash):
    """arXiv:1207.0580 on the weights of arXiv:1706.03762: each is 0, or itself over 1 - p; what is masked stays 0."""
    mask = torch.arange(KEYS)[None, None, None] < torch.tensor([KEYS, 11])[:, None, None, None] if masked else None
    used, formula = weights_with_dropout(probability, mask, flash)
    kept = used != 0
    torch.testing.assert_close(used, torch.where(kept, formula / (1 - probability), 0.0), rtol=0, atol=TOLERANCE)
    seen = torch.ones(2, 9, KEYS, dtype=torch.bool) if mask is None else mask[:, 0].expand(2, 9, KEYS)
    assert not kept[~seen].any()
    dropped = 1 - kept[seen].float().mean().item()
    deviation = (probability * (1 - probability) / int(seen.sum())) ** 0.5
    assert abs(dropped - probability) < 4 * deviation
    assert kept[:, 0].ne(kept[:, 1]).any(), "every query drops its own"


def test_dropout_follows_torchs_generator():
    assert torch.equal(weights_with_dropout(0.5, None)[0], weights_with_dropout(0.5, None)[0])
    first, second = ((weights_with_dropout(0.5, None, seed=seed)[0] != 0) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_without_dropout_every_call_is_the_formula():
    """What training code sets for evaluation."""
    mask = torch.rand(2, 1, 9, KEYS, generator=torch.Generator().manual_seed(3)) > 0.5
    mask[..., 0] = True
    for seed in (0, 1):
        used, formula = weights_with_dropout(0.0, mask, seed=seed)
        torch.testing.assert_close(used, formula, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_a_query_that_may_see_nothing_gets_nothing(probability, flash):
    """Trap T9: zeros, never NaN or the mean of what is hidden."""
    mask = torch.ones(2, 1, 9, KEYS, dtype=torch.bool)
    mask[1, :, 4] = False
    used, _ = weights_with_dropout(probability, mask, flash)
    assert used.isfinite().all()
    assert not used[1, 4].any()
    assert used[1, 5].any()


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


@pytest.mark.parametrize(
    ("settings", "kernel"), [({}, sdpa_attention), ({"use_flash_attention": False}, math_attention)]
)
def test_the_settings_name_a_kernel(settings, kernel):
    assert AttentionConfig(num_heads=1, head_dim=1, **settings).kernel is kernel


def test_the_kernel_of_xformers_is_used_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("undertow.attention.config.find_spec", lambda name: object() if name == "xformers" else None)
    for flash in (True, False):
        config = AttentionConfig(num_heads=1, head_dim=1, use_xformers=True, use_flash_attention=flash)
        assert config.kernel is xformers_attention


def test_xformers_that_is_not_installed_is_named():
    with pytest.raises(MissingDependency, match=r"undertow\[xformers\]"):
        AttentionConfig(num_heads=3, head_dim=8, use_xformers=True)
