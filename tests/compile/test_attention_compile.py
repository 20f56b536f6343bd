"""Choosing a kernel by goals, budgets and measurements is decided while a graph is traced, without breaks."""

import pytest
import torch
from torch import nn

from undertow.attention.chosen import kernel_named
from undertow.attention.math import math_attention
from undertow.attention.measurement import Call, Machine, MeasuredCall, Measurements, Timing
from undertow.attention.policy import AttentionPolicy

CALL = Call(rows=1, heads=2, queries=64, keys=64, head_dim=8, dtype="float32")
TIMINGS = {
    "math": Timing(seconds=0.001, scratch_bytes=900, error=0.0),
    "sliced": Timing(seconds=0.00105, scratch_bytes=90, error=0.0),
    "sdpa": Timing(seconds=0.002, scratch_bytes=10, error=0.0),
}
MEASURED = Measurements(
    machine=Machine(device="cpu", name="", torch_version="", threads=1),
    calls=(MeasuredCall(call=CALL, timings=TIMINGS, refused={}, date="2026-11-28"),),
)


class Attends(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def forward(self, tokens, mask):
        return self.kernel(tokens, tokens, tokens, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["auto", "balanced", "memory", AttentionPolicy(budget_bytes=1000), "flash", "cudnn"])
def test_the_choice_is_made_while_tracing(name, masked):
    torch._dynamo.reset()
    kernel = kernel_named(name, measured=MEASURED)
    tokens = torch.randn(1, 2, 64, 8)
    mask = torch.arange(64)[None, None, None] < 40 if masked else None
    compiled = torch.compile(Attends(kernel), fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(tokens, mask), math_attention(tokens, tokens, tokens, mask))
