"""The heap of the process: glibc keeps what is freed for later, which counts as the process's memory all the same."""

import ctypes
from collections.abc import Callable
from functools import cache

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt` (malloc.h of glibc)."""

AT_ONCE_BYTES = 2**20
USUAL_BYTES = 32 * 2**20
"""Blocks from this size on go back to the system when they are freed: under a budget, and
what glibc comes to by itself once such blocks have been freed (mallopt(3)). Giving back 128 KiB on as well costs 3 % of
a small picture's time and saves no memory that can be measured."""


def give_back() -> None:
    """Returns free memory to the system: glibc keeps that of small tensors, and PyTorch's cache that of CUDA."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def give_back_at_once(*, at_once: bool) -> None:
    """Whether tensors leave the process's memory when they are freed, as a budget of the whole process needs it; else
    they do so as far as glibc finds it worth the time."""
    option = _function("mallopt")
    if option is not None:
        size = AT_ONCE_BYTES if at_once else USUAL_BYTES
        option(MMAP_THRESHOLD, size)
        option(TRIM_THRESHOLD, 2 * size)


@cache
def _function(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # no glibc
        return None
