"""What is really used: of the process, of an accelerator, and of a budget that is kept by counting."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from undertow.shortage import size_in_words

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What resets a process's peak of resident memory (Linux, Documentation/filesystems/proc.rst)."""


LIBRARIES_BYTES = 120 * 2**20
"""Code of PyTorch and what else is loaded, as it is in memory once pictures are drawn on a CPU."""


class BudgetMemoryError(MemoryError):
    """A budget was exceeded: tensors that were about to be used would not have fitted."""


@dataclass(kw_only=True)
class Tracker:
    """Bytes of tensors under a budget. limit_bytes: of all together; `None` counts without one. weights_bytes: of the
    networks that are in memory. live_bytes: of everything that was computed and is still held. peak_bytes: the most of
    both."""

    limit_bytes: int | None = None
    weights_bytes: int = 0
    live_bytes: int = 0
    peak_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        return self.weights_bytes + self.live_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more would fit."""
        return self.limit_bytes is None or self.held_bytes + size_bytes <= self.limit_bytes

    def require(self, size_bytes: int) -> None:
        """Errors: `BudgetMemoryError` when so much more does not fit."""
        if not self.has_room(size_bytes):
            assert self.limit_bytes is not None
            raise BudgetMemoryError(
                f"tried to allocate {size_in_words(size_bytes)} beside {size_in_words(self.held_bytes)}, "
                f"with a budget of {size_in_words(max(0, self.limit_bytes))} for weights and activations"
            )

    def note(self) -> None:
        """Remembers the peak."""
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)


class Guard(TorchDispatchMode):
    """Counts the tensors that operations allocate, and refuses those beyond the tracker's limit: a budget that is kept
    on any device, where a system's own limit would end the process. Operations and their results are the same.

    What an operation needs inside (workspaces of convolutions) is not seen. `aside` stops the counting.
    """

    def __init__(self, tracker: Tracker):
        super().__init__()
        self.tracker = tracker
        self._live: set[int] = set()
        self._counting = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """It never runs inside a compiled graph. Else PyTorch would import its compiler, 800 modules and 60 MiB, at the
        first operation that is counted, and call every one through it."""
        return False

    @contextmanager
    def aside(self) -> Generator[None]:
        """What is allocated inside is counted elsewhere."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        found = func(*args, **kwargs)
        if not self._counting:
            return found
        new = [(key, storage) for key, storage in _storages(found) if key not in self._live]
        if new:  # views of what is counted are most operations
            given = {key for key, _ in _storages((args, kwargs))}
            for key, storage in new:
                if key not in given and key not in self._live:
                    self._count(key, storage)
        return found

    def _count(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.tracker.require(size)
        self._live.add(key)
        self.tracker.live_bytes += size
        self.tracker.note()
        finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.tracker.live_bytes -= size


def _storages(values: Any) -> list[tuple[int, torch.UntypedStorage]]:
    tensors = (values,) if isinstance(values, Tensor) else tree_iter(values)
    dense = (one for one in tensors if isinstance(one, Tensor) and not one.is_mkldnn)  # packed weights show no storage
    found = (one.untyped_storage() for one in dense)
    return [(storage._cdata, storage) for storage in found]  # pyright: ignore[reportPrivateUsage]


class ProcessMemory:
    """The process's own memory, as Linux counts it; `None` where nobody tells."""

    def in_use(self) -> int | None:
        """Bytes that the system cannot take back: not those of mapped files."""
        lines = _status("RssAnon", "RssShmem")
        return None if lines is None else sum(lines)

    def code(self) -> int:
        """Bytes of libraries that are in memory, at most: the rest of mapped files is weights."""
        lines = _status("RssFile")
        return 0 if lines is None else min(lines[0], LIBRARIES_BYTES)

    def begin(self) -> None:
        """Forgets the peak so far, where that is allowed."""
        with suppress(OSError):
            CLEAR.write_text(RESET_PEAK)

    def peak(self) -> int | None:
        """The most resident memory since `begin`, or since the process began."""
        lines = _status("VmHWM")
        return None if lines is None else lines[0]


class CudaMemory:
    """Memory of a CUDA device that this process reserved through PyTorch."""

    def __init__(self, device: torch.device):
        self._device = device

    def in_use(self) -> int | None:
        return torch.cuda.memory_reserved(self._device)

    def code(self) -> int:
        return 0

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int | None:
        return torch.cuda.max_memory_reserved(self._device)


def memory_of(device: torch.device) -> ProcessMemory | CudaMemory:
    """What tells how much of a device's memory is used: of the process, for all but CUDA."""
    return CudaMemory(device) if device.type == "cuda" else ProcessMemory()


def _status(*names: str) -> list[int] | None:
    """Lines of the process's status, in bytes."""
    try:
        text = STATUS.read_text()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in text.splitlines())
    if any(name not in found for name in names):
        return None
    return [1024 * int(found[name].split()[0]) for name in names]
