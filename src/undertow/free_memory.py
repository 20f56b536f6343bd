"""How much memory there still is, where that can be known, and one kind of error for running out of it."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.errors import LESS_MEMORY, OutOfMemory, UndertowError
from undertow.shortage import address_room, is_out_of_memory

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: "torch.device") -> int | None:
    """Bytes that could still be allocated on a device, at most; `None` where nobody tells: of a CUDA device what the
    driver and PyTorch's cache have free, of a CPU `host_free_bytes`."""
    if device.type == "cuda":
        import torch  # noqa: PLC0415  whoever has a device has it

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_free_bytes() if device.type == "cpu" else None


def host_free_bytes() -> int | None:
    """What Linux calls available, with its swap, or what the process's control group or its limit of addresses
    (`ulimit -v`) leaves of it; `None` on other systems. Imports no torch."""
    if not MEMINFO.is_file():
        return None
    kilobytes = _meminfo()
    if "MemAvailable" not in kilobytes:
        return None
    free = 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    return min(one for one in (free, _group_bytes(), address_room()) if one is not None)


def require_free(work: str, needed_bytes: int, device: "torch.device", remedy: str) -> None:
    """Errors: `OutOfMemory` for work that needs more than could still be allocated, where that is known."""
    free = free_bytes(device)
    if free is not None and needed_bytes > free:
        raise OutOfMemory(work, needed_bytes=needed_bytes, free_bytes=free, remedy=remedy)


def _meminfo() -> Mapping[str, int]:
    """By name, in kilobytes, which is what every line but a few counts."""
    lines = (line.partition(":") for line in MEMINFO.read_text().splitlines())
    return {name: int(value.split()[0]) for name, _, value in lines if value.split()}


def _group_bytes() -> int | None:
    """What the process's control group (version 2, as containers see it) has left; `None` without a limit. Files that
    the kernel keeps in memory are given up when room is needed, so that they count as free."""
    try:
        limit, used = (GROUP / "memory.max").read_text().strip(), int((GROUP / "memory.current").read_text())
        cached = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - used + int(cached.get("file", 0))
    except (OSError, ValueError):
        return None


@contextmanager
def naming_memory(work: str, remedy: str = LESS_MEMORY) -> Generator[None]:
    """Makes an `OutOfMemory` of running out of memory inside. work: what is done there, as its subject."""
    try:
        yield
    except UndertowError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(work, remedy=remedy, cause=error) from error
        raise
