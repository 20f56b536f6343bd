"""What is measured of the kernels, where it is kept, and what is chosen by it."""

import json
from dataclasses import replace

import pytest
import torch

from undertow.attention import measure as measuring
from undertow.attention.catalogue import KERNELS
from undertow.attention.choose import choose
from undertow.attention.chosen import ChosenAttention, stored_kernel
from undertow.attention.kernel import Requirements
from undertow.attention.measure import gathered, measure, requirements_of, scratch_bytes
from undertow.attention.measurement import (
    Call,
    Machine,
    MeasuredCall,
    Measurements,
    Timing,
    store,
    stored_measurements,
)
from undertow.attention.policy import AttentionPolicy

CALL = Call(rows=2, heads=3, queries=64, keys=48, head_dim=8, dtype="float32")
LIKE_IT = Requirements(device="cpu", dtype=torch.float32, queries=64, keys=48, rows=2, heads=3, head_dim=8)
MIB = 2**20


def timing(milliseconds: float, mebibytes: float) -> Timing:
    return Timing(seconds=milliseconds / 1e3, scratch_bytes=int(mebibytes * MIB), error=1e-7)


def measurements(call: Call = CALL, **timings: Timing) -> Measurements:
    found = {name.replace("_", "-"): one for name, one in timings.items()}
    calls = (MeasuredCall(call=call, timings=found, refused={}, date="2026-11-28"),)
    return Measurements(machine=Machine.here("cpu"), calls=calls)


KNOWN = measurements(math=timing(2, 9), sdpa=timing(4, 1), chunked=timing(2.15, 5), sliced=timing(8, 2))


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ({}, "math"),
        ({"goal": "memory"}, "sdpa"),
        ({"goal": "balanced"}, "chunked"),  # 7 % slower than the fastest, with less memory
        ({"budget_bytes": 6 * MIB}, "chunked"),
        ({"budget_bytes": 3 * MIB}, "sdpa"),
        ({"budget_bytes": 10}, None),  # nothing stays within it: the least, which is not among the measured ones
        ({"goal": "memory", "budget_bytes": 9 * MIB}, "sdpa"),
    ],
)
def test_the_choice_follows_the_goal_and_the_budget(policy, name):
    choice = choose(LIKE_IT, AttentionPolicy(**policy), KNOWN)
    if name is None:
        least = min(entry.scratch_bytes(LIKE_IT) for entry in KERNELS.values() if entry.lacks(LIKE_IT) is None)
        assert KERNELS[choice.name].scratch_bytes(LIKE_IT) == least
        assert "no kernel stays within the budget of 10 bytes" in choice.reason
    else:
        assert choice.name == name
        assert "measured 2026-11-28" in choice.reason


@pytest.mark.parametrize("seconds", [(2.0, 2.05), (2.05, 2.0)])
def test_between_equals_the_usual_kernel_stays_whatever_the_noise(seconds):
    one, other = (timing(value, 1) for value in seconds)
    assert choose(LIKE_IT, measured=measurements(math=one, sdpa=other)).name == "sdpa"
    assert choose(LIKE_IT, measured=measurements(math=one, sliced=other)).name == "math", "then the catalogue's first"
    bfloat16 = replace(LIKE_IT, dtype=torch.bfloat16)
    known = measurements(replace(CALL, dtype="bfloat16"), sdpa=one, chunked=other)
    assert choose(bfloat16, measured=known).name == "chunked"


def test_a_kernel_that_does_not_meet_the_requirements_is_not_chosen_however_fast():
    known = measurements(chunked=timing(1, 1), math=timing(2, 1), local_approximate=timing(0.1, 0))
    assert choose(LIKE_IT, measured=known).name == "chunked"
    assert choose(replace(LIKE_IT, float32_logits=True), measured=known).name == "math"
    assert choose(LIKE_IT, measured=known, without=("chunked", "math")).name == "sdpa", "by the rules"


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({}, True),
        ({"rows": 8}, True),
        ({"queries": 128, "keys": 96}, True),
        ({"queries": 129}, False),
        ({"keys": 23}, False),
        ({"head_dim": 16}, False),
        ({"dtype": torch.bfloat16}, False),
    ],
)
def test_a_measurement_stands_for_calls_of_its_kind(changes, near):
    wanted = replace(LIKE_IT, **changes)
    assert (KNOWN.near(wanted) is not None) is near
    assert ("measured" in choose(wanted, measured=KNOWN).reason) is near


def test_of_several_the_nearest_counts():
    far = replace(CALL, queries=100)
    both = KNOWN.with_calls(measurements(far, sdpa=timing(1, 1)).calls)
    assert both.near(LIKE_IT).call == CALL
    assert both.near(replace(LIKE_IT, queries=99)).call == far
    again = both.with_calls(measurements(far, math=timing(1, 1)).calls)
    assert [one.call for one in again.calls] == [CALL, far], "a new measurement replaces the old one of its shape"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_stored_is_read_on_this_machine_alone(cache):
    assert stored_measurements("cpu") is None
    file = store(KNOWN)
    assert file.parent == cache / "attention"
    assert stored_measurements("cpu") == KNOWN
    assert stored_measurements("meta") is None
    content = json.loads(file.read_text())
    for other in (
        {**content, "machine": {**content["machine"], "torch_version": "1.0"}},
        {**content, "format": 0},
        {**content, "calls": [{"call": {}}]},
        {**content, "calls": 3},
    ):
        file.write_text(json.dumps(other))
        assert stored_measurements("cpu") is None


def test_what_was_measured_decides_what_a_loaded_network_runs(cache):
    store(KNOWN)
    kernel = stored_kernel("auto", float32_logits=False, device=None)
    assert isinstance(kernel, ChosenAttention)
    assert kernel.choice(LIKE_IT).name == "math"
    assert stored_kernel("balanced", float32_logits=False, device="cpu").choice(LIKE_IT).name == "chunked"
    assert ChosenAttention().choice(LIKE_IT).name == "sdpa", "a network built by hand reads no files"


def test_every_kernel_is_measured_or_says_why_not(monkeypatch):
    """One gives wrong numbers, one raises, and one would take more memory than there is."""

    def wrong(query, key, value, mask=None):
        return KERNELS["math"].kernel(query, key, value) * 1.01

    def failing(query, key, value, mask=None):
        raise RuntimeError("no kernel image")

    for name, kernel in (("chunked", wrong), ("flash", failing)):
        monkeypatch.setitem(KERNELS, name, replace(KERNELS[name], kernel=kernel))
    monkeypatch.setitem(KERNELS, "sliced", replace(KERNELS["sliced"], scratch_bytes=lambda _: 2**60))
    (found,) = gathered(measure([CALL], repeats=1))
    assert found.timings.keys() == {"math", "sdpa"}
    assert all(one.seconds > 0 and one.error < 2e-6 for one in found.timings.values())
    assert found.refused["chunked"] == "it is wrong: relative error 0.01"
    assert found.refused["flash"] == "it failed: no kernel image"
    assert found.refused["sliced"].startswith("it would take 1153 PB")
    assert found.refused["cudnn"] == "it runs on cuda only"
    assert set(found.timings) | set(found.refused) == {name for name, entry in KERNELS.items() if entry.exact}


def test_a_kernel_that_gives_no_numbers_does_not_count(monkeypatch):
    nan = replace(KERNELS["sdpa"], kernel=lambda query, *_: query * torch.nan)
    monkeypatch.setitem(KERNELS, "sdpa", nan)
    (found,) = gathered(measure([CALL], repeats=1))
    assert found.refused["sdpa"] == "it is wrong: relative error inf"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_kernel_allocates_more_than_it_says(dtype, masked):
    """By PyTorch's own account of its allocator. The bound of a kernel that writes scores out is sharp."""
    shape = Call(rows=2, heads=4, queries=512, keys=512, head_dim=40, dtype=dtype)
    inputs = measuring._inputs(shape, torch.device("cpu"))
    mask = torch.rand(2, 1, 512, 512) > 0.5 if masked else None
    requirements = replace(requirements_of(shape, "cpu"), masked=masked)
    for name, entry in KERNELS.items():
        if entry.lacks(requirements) is None:
            with torch.inference_mode():
                found = scratch_bytes(lambda kernel=entry.kernel: kernel(*inputs, mask), torch.device("cpu"))
            bound = entry.scratch_bytes(requirements)
            assert found <= bound, name
            if name in ("math", "chunked"):
                assert bound < 1.25 * found + 2 * MIB, name


def test_memory_of_the_kernels_grows_as_they_say():
    """Beside the scores of all queries, 16.8 million at 4,096 tokens and one head: a chunk is a sixteenth of them."""
    call = Requirements(device="cpu", dtype=torch.float32, queries=4096, keys=4096, rows=2, heads=8, head_dim=40)
    scores = 4 * call.scores
    assert KERNELS["math"].scratch_bytes(call) > 2 * scores
    assert KERNELS["sliced"].scratch_bytes(call) < 2.5 * scores / 16
    assert KERNELS["chunked"].scratch_bytes(call) < 2.5 * scores / 16
    assert KERNELS["sdpa"].scratch_bytes(call) < scores / 500
