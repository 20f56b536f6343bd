"""What of a machine decides about memory, as far as it says without PyTorch."""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from undertow.memory.calibration import Calibration, read_calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What of the machine decides about memory. bfloat16: the processor multiplies it by itself. threads: of PyTorch.
    Workspaces are those of oneDNN; of other devices than a CPU they are not known, and are part of `calibration`, with
    what the device's allocator takes for itself; `None` forecasts the tensors alone."""

    device: str = "cpu"
    bfloat16: bool = True
    threads: int = 1
    calibration: Calibration | None = None

    def on(self, device: str) -> "Machine":
        """The same machine, of which another device computes."""
        return replace(self, device=device, calibration=read_calibration() if device == "cuda" else None)


@cache
def this_machine() -> Machine:
    """The CPU that this runs on, as far as it says without PyTorch; `undertow.processor` asks that."""
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2", "AVX512_CORE")
    info = Path("/proc/cpuinfo")
    words = set(info.read_text(encoding="utf-8", errors="replace").split()) if info.is_file() else set[str]()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        bfloat16=not limited and bool(words & {"avx512_bf16", "amx_bf16", "bf16"}),
        threads=int(threads) if threads.isdecimal() and int(threads) else os.cpu_count() or 1,
    )
