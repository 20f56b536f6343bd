"""What is freed leaves the process, where a budget asks for it."""

import subprocess
import sys

import pytest

from tests.few import few

FREED = """
import torch
from pathlib import Path
from undertow.memory.heap import give_back, give_back_at_once

def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

give_back_at_once(at_once={at_once})
kept = [torch.ones(2**20, dtype=torch.uint8) for _ in range(128)]
before = resident_bytes()
del kept[::2]
print(before - resident_bytes())
"""


@pytest.mark.parametrize("at_once", few([True, False], 1))
def test_memory_between_what_is_still_in_use_leaves_too(at_once):
    """In a process of its own, since room that is free already is used first."""
    command = [sys.executable, "-c", FREED.format(at_once=at_once)]
    left = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (left > 60 * 2**20) is at_once
