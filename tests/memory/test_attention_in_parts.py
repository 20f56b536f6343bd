"""Attention that writes its scores out gives way by computing parts of its queries: by plan, by the ladder, and told to
each forward."""

from typing import get_args

import pytest
import torch

import undertow
from tests.services import pipeline_folder
from undertow import GenerationRequest
from undertow.attention.catalogue import KERNELS
from undertow.attention.chosen import ChosenAttention, holds_scores, kernel_named
from undertow.attention.in_parts import PART, in_parts
from undertow.attention.measurement import Call, Machine, MeasuredCall, Measurements, Timing
from undertow.attention.policy import KERNEL_NAMES
from undertow.engine.memory_of_request import economy_of
from undertow.memory.ladder import Economy, StepDown
from undertow.memory.work import KernelName

SIDE, CELLS, TOKENS = 144, 1296, 77
"""The tiny U-Net attends over a quarter of each side."""

ASKED = GenerationRequest(prompt="a cat", steps=1, seed=5, size=(SIDE, SIDE), guidance_scale=1.0)
PLAN = {"size": (SIDE, SIDE), "guidance": False, "steps": 1}


@pytest.fixture
def service():
    return undertow.load(pipeline_folder("sd1"), dtype=torch.float32, attention="math")


def watch_queries(service, most=CELLS):
    """How many queries each call of a kernel has; more than `most` run out of memory."""
    seen = []

    def watched(query, key, value, mask=None):
        seen.append(query.shape[2])
        if query.shape[2] > most:
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")
        return KERNELS["math"].kernel(query, key, value, mask)

    for module in service.model.unet.modules():
        if hasattr(module, "to_q"):
            module.kernel = watched
    return seen


def test_each_part_sees_all_keys_and_its_own_rows_of_the_mask():
    """As the whole does, to rounding in float64; with a mask for all queries, one for each, and none."""
    generator = torch.Generator().manual_seed(0)
    queries = 2 * PART + 9
    query, key, value = (
        torch.randn(2, 3, tokens, 8, generator=generator, dtype=torch.float64) for tokens in (queries, 20, 20)
    )
    whole, parts = KERNELS["math"].kernel, in_parts(KERNELS["math"].kernel)
    for shape in ((2, 1, 1, 20), (2, 1, queries, 20), None):
        mask = None if shape is None else torch.rand(shape, generator=generator) < 0.5
        assert (parts(query, key, value, mask) - whole(query, key, value, mask)).abs().max() < 1e-12


def test_kernels_that_write_scores_out_are_known():
    assert get_args(KernelName) == ("auto", *KERNEL_NAMES)
    known = [name for name in ("auto", "math", "sdpa", "chunked", "sliced") if holds_scores(kernel_named(name))]
    assert known == ["math", "sliced"]


def test_a_plan_knows_the_kernel_of_the_model_and_computes_in_parts(service):
    free = service.plan(**PLAN)
    assert free.work.kernel == "math"
    least = service.plan(**PLAN, budget_bytes=free.smallest_bytes)
    assert least.fits
    (measure,) = [one for one in least.measures if one.name == "attention in parts of the queries"]
    assert measure.stage == "denoise"
    assert measure.saved_bytes > 2**24, "of two score matrices of 4 heads in float32, 51 MiB"
    economy = economy_of(least.work, 1)
    assert economy.attention_in_parts
    seen = watch_queries(service)
    course = (StepDown(unit=0, reason="to keep to the budget", economy=Economy(attention_in_parts=True)),)
    parts = service.run(ASKED, course=course)
    assert set(seen) == {PART, CELLS - 5 * PART}
    again = undertow.load(pipeline_folder("sd1"), dtype=torch.float32, attention="math").run(ASKED, course=course)
    assert again.images[0].tobytes() == parts.images[0].tobytes()


def test_running_out_in_attention_goes_on_in_parts_and_the_course_repeats_it(service):
    seen = watch_queries(service, most=PART)
    found = service.run(ASKED)
    economies = [step.economy for step in found.report.memory.course]
    assert economies == [Economy(evict_idle=True), Economy(evict_idle=True, attention_in_parts=True)]
    assert seen[:2] == [CELLS, CELLS]
    assert max(seen[2:]) == PART
    fresh = undertow.load(pipeline_folder("sd1"), dtype=torch.float32, attention="math")
    again = fresh.run(ASKED, course=found.report.memory.course)
    assert again.images[0].tobytes() == found.images[0].tobytes()


def test_a_plan_follows_what_was_measured_call_by_call():
    """Of the two calls of this network at this size, self-attention was measured faster written out."""
    sizes = (("math", CELLS), ("sdpa", TOKENS))
    calls = tuple(
        MeasuredCall(
            call=Call(rows=1, heads=4, queries=CELLS, keys=keys, head_dim=16, dtype="float32"),
            timings={name: Timing(seconds=1e-3, scratch_bytes=1000, error=0.0)},
            refused={},
            date="2026-11-29",
        )
        for name, keys in sizes
    )
    machine = Machine(device="cpu", name="any", torch_version="2", threads=1)
    kernel = ChosenAttention(measured=Measurements(machine=machine, calls=calls))
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32)
    service.model.unet.kernel = kernel
    work = service.plan(**PLAN).work
    assert {(queries, keys): name for queries, keys, name in work.kernels}[CELLS, CELLS] == "math"
    written_out = service.plan(**PLAN)
    service.model.unet.kernel = kernel_named("sdpa")
    fused = service.plan(**PLAN)
    assert written_out.peak_bytes > fused.peak_bytes
    assert fused.work.kernel != "math"
