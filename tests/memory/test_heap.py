"""What is freed leaves the process, where a budget asks for it."""

from pathlib import Path

import pytest
import torch

from undertow.memory.heap import give_back, give_back_at_once

MIB = 2**20


@pytest.fixture
def usual():
    yield
    give_back_at_once(at_once=False)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return 4096 * pages


@pytest.mark.parametrize("at_once", [True, False])
def test_memory_between_what_is_still_in_use_leaves_too(usual, at_once):
    give_back()
    give_back_at_once(at_once=at_once)
    kept = [torch.ones(MIB, dtype=torch.uint8) for _ in range(128)]
    before = resident_bytes()
    del kept[::2]
    assert (before - resident_bytes() > 60 * MIB) is at_once
