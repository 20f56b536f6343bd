"""What of a machine decides about memory, as far as it says without PyTorch."""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from undertow.memory.calibration import Calibration, read_calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What of the machine decides about memory. bfloat16, float16: the processor multiplies it by itself; amx: in
    tiles. onednn: products in float32 go to oneDNN, else to MKL. threads: of PyTorch. Workspaces are those of
    `workspaces.py`; of other devices than a CPU they are not known, and are part of `calibration`, with what the
    device's allocator takes for itself; `None` forecasts the tensors alone."""

    device: str = "cpu"
    bfloat16: bool = True
    amx: bool = False
    float16: bool = False
    onednn: bool = True
    threads: int = 1
    calibration: Calibration | None = None

    def on(self, device: str) -> "Machine":
        """The same machine, of which another device computes."""
        return replace(self, device=device, calibration=read_calibration() if device == "cuda" else None)


CPUINFO = Path("/proc/cpuinfo")

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
WITHOUT_FLOAT16 = (*WITHOUT_BFLOAT16, "AVX512_CORE_BF16")
WITHOUT_AMX = (*WITHOUT_FLOAT16, "AVX512_CORE_FP16")
"""Values of oneDNN's variable that keep it from using what the processor has."""

AMD = "AuthenticAMD"
"""Whose products in float32 `nn.matmul` gives to oneDNN (`processor.onednn_is_faster`)."""


@cache
def this_machine() -> Machine:
    """The CPU that this runs on, as far as it says without PyTorch; `undertow.processor` asks that."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    said = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    words = set(said.split())
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        bfloat16=most not in WITHOUT_BFLOAT16 and bool(words & {"avx512_bf16", "amx_bf16", "bf16"}),
        amx=most not in WITHOUT_AMX and "amx_bf16" in words,
        float16=most not in WITHOUT_FLOAT16 and "avx512_fp16" in words,
        onednn=AMD in words,
        threads=int(threads) if threads.isdecimal() and int(threads) else os.cpu_count() or 1,
    )
