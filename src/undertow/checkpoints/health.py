"""Finds NaN, infinity, zeros and overflow in weights, with one pass of `aminmax` over each tensor.

`aminmax` reads every value once, at memory speed, and NaN and infinity propagate to its two results; only a damaged
tensor is read a second time, to count them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from undertow.errors import DamagedWeights
from undertow.shapes import AnyTensor

Verdict = Literal["not finite", "overflows float16", "all zero", "constant"]
NEVER = 0
Use = int | None
"""When a tensor is used: `None` for every picture, otherwise the largest clip skip at which it is used, or `NEVER`.

Clip skip counts layers of a text encoder from the end, 1 being the last: CLIP-L's layer 11 of 12 is used at 1 alone.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One suspicious tensor. nan, infinite: how many of its `count` values."""

    name: str
    verdict: Verdict
    dtype: torch.dtype
    count: int
    nan: int = 0
    infinite: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    use: Use = None

    def __str__(self) -> str:
        if self.verdict != "not finite":
            span = "" if self.verdict == "all zero" else f" (from {self.minimum:g} to {self.maximum:g})"
            return f"{self.name}: {self.verdict}{span}"
        parts = [f"{kind}: {n}/{self.count}" for kind, n in (("NaN", self.nan), ("Inf", self.infinite)) if n]
        return f"{self.name}: {', '.join(parts)}"


@dataclass(kw_only=True)
class Health:
    """What a scan found. `problems` are the findings that can spoil a picture; the others are information."""

    findings: list[Finding] = field(default_factory=list)
    tensors: int = 0
    scanned_bytes: int = 0

    @property
    def problems(self) -> list[Finding]:
        """Non-finite values in tensors that are used."""
        return [finding for finding in self.findings if finding.verdict == "not finite" and finding.use != NEVER]

    @property
    def unused(self) -> list[Finding]:
        """Non-finite values in tensors that are never used: harmless, and worth knowing."""
        return [finding for finding in self.findings if finding.verdict == "not finite" and finding.use == NEVER]

    def add(self, name: str, tensor: AnyTensor, *, use: Use = None, target: torch.dtype | None = None) -> None:
        """Scans one tensor. target: the type it will be converted to."""
        self.tensors += 1
        self.scanned_bytes += tensor.nbytes
        finding = examine(name, tensor, use=use, target=target)
        if finding is not None:
            self.findings.append(finding)

    def require(self, path: Path, clip_skip: int | None = None) -> None:
        """Refuses damage in tensors that every picture uses, and in those used at this clip skip, if it is given.

        Errors: `DamagedWeights` lists the tensors.
        """
        bad = [
            finding
            for finding in self.problems
            if finding.use is None or (clip_skip is not None and finding.use >= clip_skip)
        ]
        _refuse(path, bad, "download or convert it again")

    def require_all(self, path: Path) -> None:
        """Refuses any damage, also in tensors that are not used or only at some clip skip.

        Errors: `DamagedWeights` lists the tensors.
        """
        _refuse(
            path,
            [*self.problems, *self.unused],
            "download it again, or load it without validation if these tensors are not needed",
        )


def _refuse(path: Path, bad: list[Finding], remedy: str) -> None:
    if bad:
        shown = "; ".join(map(str, bad[:3])) + (f"; and {len(bad) - 3} more tensors" if len(bad) > 3 else "")
        raise DamagedWeights(path, [one.name for one in bad], f"weights with NaN or infinity: {shown}", remedy)


def examine(name: str, tensor: AnyTensor, *, use: Use = None, target: torch.dtype | None = None) -> Finding | None:
    """The problem of one tensor; `None` when there is none, or when it holds no floating-point numbers."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return None
    # PyTorch has no aminmax for 8-bit types; float16 holds their values exactly.
    values = tensor.to(torch.float16) if tensor.dtype.itemsize == 1 else tensor
    low, high = (float(bound) for bound in torch.aminmax(values))
    verdict = _verdict(low, high, tensor.numel(), target)
    if verdict is None:
        return None
    bad = verdict == "not finite"
    return Finding(
        name=name,
        verdict=verdict,
        dtype=tensor.dtype,
        count=tensor.numel(),
        nan=int(values.isnan().sum()) if bad else 0,
        infinite=int(values.isinf().sum()) if bad else 0,
        minimum=low,
        maximum=high,
        use=use,
    )


def _verdict(low: float, high: float, count: int, target: torch.dtype | None) -> Verdict | None:
    largest = max(abs(low), abs(high))
    if not largest < float("inf"):  # NaN compares false
        return "not finite"
    if target == torch.float16 and largest > torch.finfo(torch.float16).max:
        return "overflows float16"
    if largest == 0:
        return "all zero"
    # A norm of ones is as it was initialized, which is no damage, and a scalar is always constant.
    return "constant" if low == high and count > 1 and low != 1 else None
