"""How much more than its tensors a CUDA device gives out: workspaces of cuDNN, rounding, fragments of its allocator.

No rule says it from outside, so that it is measured once on a device, each case in a process of its own (`python -m
benchmarks.cuda_memory`), and kept in the cache folder. Imports no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from undertow.cache_folder import cache_folder, read_cached, write_cached

MARGIN = 1.02
"""On top of the largest that was measured, for sizes that were not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """Bytes that a stage's activations become: factor times, and more_bytes."""

    stage: str
    factor: float
    more_bytes: int

    def of(self, activation_bytes: int) -> int:
        return round(self.factor * activation_bytes) + self.more_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What was measured on a device. A stage that was not measured takes as much as the one that takes most."""

    device: str
    torch: str
    stages: tuple[Excess, ...]

    def reserved(self, stage: str, activation_bytes: int) -> int:
        """What the allocator reserves for these activations, beside the weights."""
        found = [one.of(activation_bytes) for one in self.stages if one.stage == stage]
        return max(found or [one.of(activation_bytes) for one in self.stages])


UNCALIBRATED = Calibration(
    device="",
    torch="",
    stages=(
        Excess(stage="denoise", factor=1.15, more_bytes=64 * 2**20),
        Excess(stage="decode", factor=2.3, more_bytes=64 * 2**20),
        Excess(stage="encode", factor=2.3, more_bytes=64 * 2**20),
    ),
)
"""Before a device is measured: 15 % for rounding and fragments, and for the VAE 2.3 times the tensors, the most that
InvokeAI's measurements show (https://github.com/invoke-ai/InvokeAI/pull/7674)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A case in a process of its own. activation_bytes: as they are forecast. excess_bytes: reserved beside weights."""

    stage: str
    activation_bytes: int
    excess_bytes: int


def calibrated(device: str, torch: str, cases: Sequence[Measured]) -> Calibration:
    """The least that is below none of the cases, for each stage: an upper line through what was measured."""
    stages = sorted({case.stage for case in cases})
    fits = (_fitted(stage, [case for case in cases if case.stage == stage]) for stage in stages)
    return Calibration(device=device, torch=torch, stages=tuple(fits))


def _fitted(stage: str, cases: Sequence[Measured]) -> Excess:
    def line(factor: float) -> Excess:
        more = max(0.0, *(MARGIN * case.excess_bytes - factor * case.activation_bytes for case in cases))
        return Excess(stage=stage, factor=factor, more_bytes=-int(-more // 1))

    def above(fit: Excess) -> float:
        return sum(fit.of(case.activation_bytes) / max(1, case.excess_bytes) for case in cases)

    return min((line(factor) for factor in _factors(cases)), key=above)


def _factors(cases: Sequence[Measured]) -> Iterable[float]:
    """Of every line through two cases or through one and zero, and 1, below which no allocator goes."""
    yield 1.0
    for one in cases:
        yield max(1.0, MARGIN * one.excess_bytes / max(1, one.activation_bytes))
        for other in cases:
            apart = one.activation_bytes - other.activation_bytes
            if apart > 0:
                yield max(1.0, MARGIN * (one.excess_bytes - other.excess_bytes) / apart)


def calibration_file() -> Path:
    return cache_folder() / "cuda-memory.json"


def store_calibration(calibration: Calibration) -> Path:
    """Keeps it for all plans on this machine."""
    write_cached(asdict(calibration), calibration_file())
    return calibration_file()


def read_calibration() -> Calibration:
    """What was measured last on this machine, else `UNCALIBRATED`."""
    found = read_cached(calibration_file())
    try:
        stages = tuple(Excess(**one) for one in found["stages"])
        return Calibration(device=found["device"], torch=found["torch"], stages=stages) if stages else UNCALIBRATED
    except (KeyError, TypeError):
        return UNCALIBRATED
