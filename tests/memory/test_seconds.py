"""Seconds of operations: measured with torch once, kept by machine, added up without it."""

import pytest
import torch

from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.seconds import CPUINFO, OVERHEAD, READ, SecondsTable, processor_name, read_table, table_file
from undertow.memory.stopwatch import POINTWISE, measure
from undertow.memory.work import Work

SIGNATURES = (
    ("linear", 8, 4, 6),
    ("conv", 2, 4, 6, 8, 8, 3, 1),
    ("conv", 1, 4, 6, 20, 20, 3, 2),
    ("conv", 1, 4, 6, 8, 8, 1, 1),
    ("attention", "sdpa", 1, 2, 8, 4, 16),
    ("attention", "math", 1, 2, 8, 4, 16),
    ("attention", "chunked", 1, 2, 8, 4, 16),
    ("group_norm", 2, 64, 16, 32),
    ("layer_norm", 10, 33),
    *((name, 320) for name in POINTWISE),
    ("add", 33),
    OVERHEAD,
    READ,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    return tmp_path


def test_every_kind_of_operation_is_measured():
    told = []
    found = measure(SIGNATURES, torch.float32, measured=told.append)
    assert list(found) == told == list(SIGNATURES)
    assert all(0 <= seconds < 1 for seconds in found.values())


def test_every_operation_of_the_networks_has_a_measurement():
    """None of them is of a kind that the stopwatch does not know: of all stages, with all that can act."""
    kinds = {(signature[0], len(signature)) for signature in SIGNATURES}
    for name in ("sd15", "sdxl", "cifar10"):
        subject = family(name)
        controlnets = 0 if subject.controlnet is None else 1
        for stage in forecast(subject, Work(size=(256, 256), loras=2, controlnets=controlnets, image_tokens=4)).stages:
            assert {(signature[0], len(signature)) for signature in stage.operations} <= kinds


def test_measurements_are_kept_for_the_machine(cache, monkeypatch):
    assert read_table().seconds == {}
    table = SecondsTable().with_more("float32", {("linear", 8, 4, 6): 0.5, ("add", 33): 0.25})
    table.with_more("float16", {("add", 33): 2.0}).save()
    found = read_table()
    assert found.of("float32", {("linear", 8, 4, 6): 2, ("add", 33): 4}) == 2.0
    assert found.of("float16", {("add", 33): 1}) == 2.0
    assert found.of("float32", {("linear", 8, 4, 7): 1}) is None
    assert found.missing("float32", {("linear", 8, 4, 7): 1, ("add", 33): 1}) == [OVERHEAD, READ, ("linear", 8, 4, 7)]
    dearer = found.with_more("float32", {OVERHEAD: 0.125, READ: 0.0})
    assert dearer.of("float32", {("linear", 8, 4, 6): 2, ("add", 33): 4}) == 2.0 + 6 * 0.125
    assert dearer.missing("float32", {("add", 33): 1}) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert read_table().seconds == {}
    assert read_table("cuda").seconds == {}


def test_a_damaged_table_is_no_table(cache):
    SecondsTable().with_more("float32", {("add", 33): 0.25}).save()
    table_file("cpu").write_text("{")
    assert read_table().seconds == {}


def test_the_file_says_processor_threads_and_version():
    name = table_file("cpu").name
    assert name.startswith("cpu-")
    assert name.endswith(f"-threads-torch-{torch.__version__.replace('+', '-')}.json")
    assert processor_name()
    assert CPUINFO.is_file() == (processor_name() in CPUINFO.read_text() if CPUINFO.is_file() else False)
