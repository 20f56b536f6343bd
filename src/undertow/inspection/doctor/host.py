"""The machine as the doctor asks it: processor time, swap and threads, read from Linux's files."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

STAT, STATUS, GROUP = Path("/proc/stat"), Path("/proc/self/status"), Path("/sys/fs/cgroup/cpu.stat")

# Fields of the line "cpu" (Linux, Documentation/filesystems/proc.rst, 1.7); guest time is part of user and nice.
USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STEAL = range(8)


def _reader(path: Path) -> Callable[[], str]:
    def read() -> str:
        try:
            return path.read_text(encoding="utf-8")
        except OSError:  # not Linux, or not allowed
            return ""

    return read


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds of all processors together since the machine started, and microseconds for which the process's control
    group was held back."""

    total: int = 0
    steal: int = 0
    throttled_us: int = 0

    def stolen_since(self, before: "CpuTimes") -> float:
        """Share of the processors' time that the hypervisor gave to other machines, from 0 to 1."""
        total = self.total - before.total
        return 0.0 if total <= 0 else (self.steal - before.steal) / total


@dataclass(frozen=True, kw_only=True)
class Host:
    """stat, status, group: the texts of /proc/stat, /proc/self/status and the control group's cpu.stat now; empty where
    there are none. cores: processors that this process may use. threads: of PyTorch's kernels."""

    stat: Callable[[], str] = field(default=_reader(STAT), repr=False)
    status: Callable[[], str] = field(default=_reader(STATUS), repr=False)
    group: Callable[[], str] = field(default=_reader(GROUP), repr=False)
    cores: int = field(default_factory=lambda: _cores())
    threads: int = field(default_factory=torch.get_num_threads)

    def times(self) -> CpuTimes:
        """Of the processors, until now."""
        line = next((line for line in self.stat().splitlines() if line.startswith("cpu ")), "")
        numbers = [int(word) for word in line.split()[1:]]
        throttled = _values(self.group()).get("throttled_usec", 0)
        if len(numbers) <= STEAL:
            return CpuTimes(throttled_us=throttled)
        return CpuTimes(total=sum(numbers[: STEAL + 1]), steal=numbers[STEAL], throttled_us=throttled)

    def swapped_bytes(self) -> int:
        """Of this process, that are in swap now."""
        return 1024 * _values(self.status().replace(":", " ")).get("VmSwap", 0)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _values(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
