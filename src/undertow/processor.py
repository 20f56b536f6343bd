"""What this machine's processor computes by itself, and what PyTorch only imitates on it.

PyTorch takes bfloat16 on any CPU. Without the instructions for it (AVX-512 BF16, AMX, ARM's BF16) every product
converts its operands there and back: matrix products take several times as long as in float32, and convolutions need
workspaces of several times their input. float16 on CPUs is slower by orders of magnitude. Where a type is imitated it
is one to store weights in, and float32 the one to compute in.

oneDNN's variable `ONEDNN_MAX_CPU_ISA=AVX2`, with PyTorch's `ATEN_CPU_CAPABILITY=avx2`, makes a newer processor stand
for an older one, here as well.

The processor is asked once, when somebody first needs to know.
"""

import hashlib
import os
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

WITHOUT_TILES = ("AVX512_CORE_BF16", "AVX512_CORE_FP16")
"""Values of oneDNN's variable that keep it from AMX, and not from bfloat16."""

Answer = TypeVar("Answer", bool, int)

CPUINFO = Path("/proc/cpuinfo")


def _constant_in_graphs(question: Callable[[], Answer]) -> Callable[[], Answer]:
    """The compiler takes the answer for a constant and does not trace how it is found: what
    `torch.compiler.assume_constant_result` does, which would import the compiler."""
    question._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return question


@_constant_in_graphs
def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself."""
    return _once(_has_bfloat16)


@_constant_in_graphs
def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 in tiles (Intel's AMX)."""
    return _once(_has_amx)


@_constant_in_graphs
def onednn_is_faster() -> bool:
    """Whether float32 products go to oneDNN instead of MKL (benchmarks/matmul.py)."""
    return _once(_onednn_is_faster)


def multiplies_int8() -> bool:
    """Whether products of int8 on the CPU are exact (VNNI, AMX)."""
    return _once(_multiplies_int8)


@_constant_in_graphs
def threads() -> int:
    """The threads that PyTorch's kernels run in on the CPU."""
    return torch.get_num_threads()


def features() -> str:
    """The instructions that there are and those of them that PyTorch uses, as eight digits: what was measured or
    compiled for others says nothing here."""
    info = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", info, re.MULTILINE)
    there = " ".join(sorted(flags[1].split())) if flags else platform.processor()
    used = f"{torch.backends.cpu.get_cpu_capability()} {os.environ.get('ONEDNN_MAX_CPU_ISA', '')}"
    return hashlib.sha256(f"{platform.machine()} {there} {used}".encode()).hexdigest()[:8]


@cache
def _once(question: Callable[[], bool]) -> bool:
    return question()


def _has_bfloat16() -> bool:
    """oneDNN respects its variable, but counts AVX-512 processors that imitate the type; the processor's own word does
    neither."""
    onednn = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    found = torch.cpu.get_capabilities()
    return onednn and any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _has_amx() -> bool:
    tiles = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return _has_bfloat16() and tiles and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_TILES


def _multiplies_int8() -> bool:
    """Asked of a product with the largest numbers: without VNNI, oneDNN adds pairs of them in 16 bits."""
    one = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch.ops.aten._int_mm(one, one.t().contiguous()) == 64 * 127**2).all())


def _onednn_is_faster() -> bool:
    """On AMD processors, where PyTorch has both libraries."""
    processor = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else platform.processor()
    both = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return both and "AuthenticAMD" in processor


IMITATED = {
    torch.bfloat16: "this device has no bfloat16 instructions, and imitating them takes several times as long",
    torch.float16: "PyTorch's float16 convolutions on CPU are slower by orders of magnitude",
}
"""Why a type is not computed in where `computes` says no."""


def computes(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether `device` computes in `dtype` by itself, so that it is not slower than float32. A GPU that is not there is
    taken for one that does."""
    kind = torch.device(device).type
    if kind == "cpu":
        return dtype not in IMITATED or (dtype == torch.bfloat16 and has_bfloat16())
    if kind == "cuda" and dtype == torch.bfloat16 and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True
