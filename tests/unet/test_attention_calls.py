"""The attention calls of a forward, against those that a forward makes."""

from collections import Counter

import pytest
import torch

from tests.golden.minis import MINIS, TIMESTEPS, build, conditioning_for, latents_for
from undertow.attention.math import math_attention
from undertow.attention.measurement import Call
from undertow.unet.attention_calls import attention_calls
from undertow.unet.config import UNetConfig


@pytest.mark.parametrize("size", [(16, 16), (9, 13)])
@pytest.mark.parametrize("name", ["M15", "MXL", "MPIX"])
@torch.no_grad()
def test_the_calls_are_those_of_a_forward(name, size):
    made: Counter[Call] = Counter()

    def kernel(query, key, value, mask=None):
        rows, heads, queries, head_dim = query.shape
        made[Call(rows=rows, heads=heads, queries=queries, keys=key.shape[2], head_dim=head_dim, dtype="float32")] += 1
        return math_attention(query, key, value, mask)

    mini, given = MINIS[name], conditioning_for(MINIS[name])
    build(mini, attention=kernel)(latents_for(mini, *size), TIMESTEPS, given)
    tokens = 77 if given.context is None else given.context.shape[1]
    calls = attention_calls(mini.config, *size, tokens=tokens)
    assert calls == made
    sizes = [call.queries * call.keys for call in calls]
    assert sizes == sorted(sizes, reverse=True)


def test_stable_diffusions_shapes():
    """16 transformers at 512 pixels (arXiv:2112.10752; memory.md counts 8 shapes for SD1.5 and 4 for SDXL)."""
    calls = attention_calls(UNetConfig.sd15(), 64, 64)
    assert len(calls) == 8
    assert sum(calls.values()) == 32
    assert calls[Call(rows=2, heads=8, queries=4096, keys=4096, head_dim=40, dtype="float32")] == 5
    assert len(attention_calls(UNetConfig.sdxl(), 128, 128)) == 4
