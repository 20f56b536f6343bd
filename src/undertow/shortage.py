"""Running out of memory, recognized in the errors of those who ran out. Imports nothing but the standard library."""

import os
import re
from contextlib import suppress
from pathlib import Path

WORDS = (
    *("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory", "std::bad_alloc"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "Invalid buffer size", "could not create a memory"),
    *("Storage size calculation overflowed", "numel: integer multiplication overflow"),
)
"""What PyTorch's allocators and libraries say when there is no more."""


LIMITED_WORDS = ("could not create a primitive", "could not execute a primitive")
"""What oneDNN says when it cannot have memory, and for other reasons too: they count where the address space of the
process is limited (`ulimit -v`), in which nothing kills the process."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the processor or of an accelerator. By names and words, so that this module needs no
    torch: `torch.OutOfMemoryError`, `MemoryError` and NumPy's, and plain `RuntimeError`s of PyTorch's CPU allocator
    (Linux, Windows), of cuBLAS and cuDNN, of MPS, and of sizes that no address counts. A oneDNN that cannot create or
    execute a primitive ran out where the
    address space is limited."""
    said = str(error)
    if "Memory" in type(error).__name__ or any(words in said for words in WORDS):
        return True
    return any(words in said for words in LIMITED_WORDS) and address_limit() is not None


def address_limit() -> int | None:
    """Bytes that the process may address (`ulimit -v`); `None` without a limit, and on Windows."""
    with suppress(ImportError):
        import resource  # noqa: PLC0415  POSIX alone has it

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return None if limit == resource.RLIM_INFINITY else limit
    return None


STATM = Path("/proc/self/statm")


def address_room() -> int | None:
    """Bytes that the process may still address under its limit; `None` without one, and where nobody tells."""
    limit = address_limit()
    if limit is None:
        return None
    try:
        pages = int(STATM.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))


def address_words() -> str:
    """What the process may address, and what of it is left, for errors; empty without a limit."""
    limit, room = address_limit(), address_room()
    if limit is None or room is None:
        return ""
    return f"this process may address {size_in_words(limit)} (ulimit -v), of which {size_in_words(room)} are left"


def asked_memory(error: BaseException | None) -> str:
    """How much was asked for when memory ran out, as the error says it; empty where it does not."""
    found = re.search(r"(?i)(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error or ""))
    if found is None:
        return ""
    amount, unit = found.groups()
    return size_in_words(int(float(amount) * BINARY[unit]))


BINARY = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""What PyTorch counts memory in."""

UNITS = ("kB", "MB", "GB", "TB", "PB")


def size_in_words(count: int) -> str:
    """Bytes in a unit that budgets are typed in, of powers of 1000, with three digits or a little more: 130 MB,
    2.43 GB."""
    if count < 1000:
        return f"{count} bytes"
    size, power = count / 1000, 0
    while size >= 1000 and power < len(UNITS) - 1:
        size, power = size / 1000, power + 1
    digits = (2 if size < 100 else 0) if power > 1 else 1 if size < 10 else 0
    return f"{size:.{digits}f} {UNITS[power]}"
