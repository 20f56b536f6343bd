"""How long work takes on this machine, from the seconds of its single operations, each measured once.

A U-Net's step consists of one or two hundred different calls of kernels, most of them made many times; their seconds
add up to those of the step within some percent (docs/results/memory.md). `stopwatch.py` measures them, this module
reads what it wrote, without torch.
"""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from undertow.cache_folder import cache_folder, read_cached, write_cached
from undertow.memory.forecast import Forecast, StageForecast
from undertow.memory.work import Work

Signature = tuple[str | int, ...]
"""A kernel's name and what decides how long it takes: see `memory/operations.py`."""

OVERHEAD: Signature = ("overhead",)
"""Not an operation: what Python and the modules take for each of them."""

READ: Signature = ("read",)
"""Bringing a megabyte of weights into memory, from a file that the system has in its cache."""

THREADS = "OMP_NUM_THREADS"
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class SecondsTable:
    """Seconds of one call, by the type that it computes in and its signature, written with spaces."""

    device: str = "cpu"
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, dtype: str, operations: Mapping[Signature, int]) -> float | None:
        """Seconds of all these calls; `None` where one of them was not measured."""
        known = self.seconds.get(dtype, {})
        total = known.get(spelled(OVERHEAD), 0.0) * sum(operations.values())
        for signature, count in operations.items():
            one = known.get(spelled(signature))
            if one is None:
                return None
            total += count * one
        return total

    def missing(self, dtype: str, operations: Mapping[Signature, int]) -> list[Signature]:
        """Those that were not measured."""
        known = self.seconds.get(dtype, {})
        return [signature for signature in (OVERHEAD, READ, *operations) if spelled(signature) not in known]

    def with_more(self, dtype: str, measured: Mapping[Signature, float]) -> "SecondsTable":
        """The table with these calls in it too."""
        more = {spelled(signature): seconds for signature, seconds in measured.items()}
        return SecondsTable(
            device=self.device, seconds={**self.seconds, dtype: {**self.seconds.get(dtype, {}), **more}}
        )

    def save(self) -> None:
        """Errors: `OSError`."""
        write_cached(dict(self.seconds), table_file(self.device))


def seconds_of(found: Forecast, work: Work, table: SecondsTable, read_bytes: int = 0) -> float | None:
    """Seconds of each picture, over all stages; `None` where an operation was not measured. A picture that is drawn
    from noise is not encoded first. read_bytes: of weights that are brought into memory again."""
    stages = [stage_seconds(stage, work, table) for stage in found.stages if stage.name != "encode"]
    if read_bytes:
        one = table.seconds.get(work.dtype, {}).get(spelled(READ))
        stages.append(None if one is None else one * read_bytes / 10**6)
    return None if None in stages else sum(one for one in stages if one is not None) / work.pictures


def stage_seconds(stage: StageForecast, work: Work, table: SecondsTable) -> float | None:
    """Seconds of all calls of a stage."""
    one = table.of(stage_dtype(stage.name, work), stage.operations)
    return None if one is None else one * stage.calls


def stage_dtype(stage: str, work: Work) -> str:
    """The type that a stage computes in."""
    own = {"text": work.text_dtype, "decode": work.vae_dtype, "encode": work.vae_dtype}.get(stage)
    return work.dtype if own is None else own


def spelled(signature: Signature) -> str:
    """A signature as the file has it: "linear 4096 320 320"."""
    return " ".join(map(str, signature))


def read_table(device: str = "cpu") -> SecondsTable:
    """What was measured on this machine; an empty table where nothing was."""
    folder = cache_folder() / "operations"
    if not folder.is_dir():
        return SecondsTable(device=device)
    return SecondsTable(device=device, seconds=read_cached(table_file(device)))


def table_file(device: str) -> Path:
    """The file of this processor or accelerator, number of threads and version of torch."""
    from importlib.metadata import version  # noqa: PLC0415  slow to import

    threads = os.environ.get(THREADS) or "all"
    parts = (device, processor_name() if device == "cpu" else "", f"{threads}-threads", f"torch-{version('torch')}")
    name = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts if part)
    return cache_folder() / "operations" / f"{name}.json"


def processor_name() -> str:
    """As the system calls it."""
    if CPUINFO.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return found[1]
    return platform.processor() or platform.machine()
