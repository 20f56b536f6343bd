"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP_S = 0.01


def until(reached: Callable[[], T], timeout_s: float = 280.0) -> T:
    """What `reached` returns as soon as it is true of anything; fails after a while."""
    end = time.monotonic() + timeout_s
    while not (found := reached()):
        assert time.monotonic() < end, f"not reached within {timeout_s:g} s"
        time.sleep(STEP_S)
    return found
