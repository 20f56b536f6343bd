"""What is noted of a tensor that passes a module: typed records, and what many of them add up to."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.engine.rows import Origin
from undertow.inspection.probe import Side


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One row's tensor at one side of a module, in one forward.

    call: as in `Site`. shape: of the row. low, high, mean, std: of the numbers that are finite; `None` where none is,
    and mean and std also where only the range was asked for. std: with the divisor N. nan, inf: how many numbers are
    not finite. seconds: of the call, its row's part; of outputs only.
    """

    module: str
    kind: str
    side: Side
    origin: Origin
    call: int
    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None
    mean: float | None = None
    std: float | None = None
    nan: int = 0
    inf: int = 0
    seconds: float | None = None

    @property
    def finite(self) -> bool:
        return self.nan == self.inf == 0

    def to_json(self) -> str:
        """One line, without names for what is not there."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(fields | {"origin": asdict(self.origin)}, allow_nan=False)

    def __str__(self) -> str:
        head = f"{self.module or 'U-Net'} {self.side}: shape {list(self.shape)} {self.dtype}"
        counts = f"NaN {self.nan}, Inf {self.inf}"
        numbers = {"min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)
        time = "" if self.seconds is None else f", {1e3 * self.seconds:.3f} ms"
        return f"{head}, {counts}, {said or 'nothing finite'}{time}"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """low, high, mean, std, nan, inf: as in `TensorRecord`."""

    low: float | None
    high: float | None
    mean: float | None = None
    std: float | None = None
    nan: int = 0
    inf: int = 0


def numbers_of(tensor: Float[Tensor, "..."], *, moments: bool = True) -> Numbers:
    """Statistics of a tensor. The range alone (moments false) takes one pass at the speed of memory, by `aminmax`,
    which gives NaN where any is; only then are numbers counted one by one."""
    if tensor.numel() == 0:
        return Numbers(low=None, high=None)
    values = tensor.detach()
    low, high = (float(one) for one in values.aminmax())
    if math.isfinite(low) and math.isfinite(high):
        return _finite(values, low, high, moments=moments)
    wide = values.float()
    finite = wide[torch.isfinite(wide)]
    nan, inf = int(wide.isnan().sum()), int(wide.isinf().sum())
    if finite.numel() == 0:
        return Numbers(low=None, high=None, nan=nan, inf=inf)
    found = _finite(finite, float(finite.min()), float(finite.max()), moments=moments)
    return Numbers(low=found.low, high=found.high, mean=found.mean, std=found.std, nan=nan, inf=inf)


def _finite(values: Tensor, low: float, high: float, *, moments: bool) -> Numbers:
    if not moments:
        return Numbers(low=low, high=high)
    std, mean = torch.std_mean(values.float(), correction=0)
    return Numbers(low=low, high=high, mean=float(mean), std=float(std))


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite: one pass, without a temporary."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = (float(one) for one in tensor.detach().aminmax())
    return math.isfinite(low) and math.isfinite(high)


@dataclass(kw_only=True)
class LayerStatistics:
    """What a module's tensors of one side add up to, over rows and steps, as records come.

    low, high: the extremes of all. mean, std: of all numbers together. nan, inf: sums. largest: the step with the
    largest magnitude. seconds: sum.
    """

    module: str
    kind: str
    side: Side
    shape: tuple[int, ...] = ()
    dtype: str = ""
    records: int = 0
    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    inf: int = 0
    largest_at: int = 0
    seconds: float = 0.0
    _values: int = 0
    _sum: float = 0.0
    _squares: float = 0.0

    def add(self, record: TensorRecord) -> None:
        before = self.magnitude
        self.records += 1
        self.shape, self.dtype = record.shape, record.dtype
        self.nan += record.nan
        self.inf += record.inf
        self.seconds += record.seconds or 0.0
        if record.low is not None and record.high is not None:
            self.low, self.high = min(self.low, record.low), max(self.high, record.high)
        if self.magnitude > before:
            self.largest_at = record.origin.step
        if record.mean is not None and record.std is not None:
            count = math.prod(record.shape) - record.nan - record.inf
            self._values += count
            self._sum += count * record.mean
            self._squares += count * (record.std**2 + record.mean**2)

    @property
    def magnitude(self) -> float:
        """The largest finite |x|; 0 before there is one."""
        return max(-self.low, self.high, 0.0) if self.low <= self.high else 0.0

    @property
    def mean(self) -> float | None:
        return self._sum / self._values if self._values else None

    @property
    def std(self) -> float | None:
        if not self._values:
            return None
        mean = self._sum / self._values
        return math.sqrt(max(0.0, self._squares / self._values - mean**2))

    @property
    def headroom(self) -> float:
        """log2 of how much larger numbers may become before they leave the type's range; infinite at zero."""
        largest = torch.finfo(getattr(torch, self.dtype)).max if self.dtype else math.inf
        return math.log2(largest / self.magnitude) if self.magnitude else math.inf

    def __str__(self) -> str:
        numbers = {"min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        said = ", ".join(f"{n} {v:.4g}" for n, v in numbers.items() if v is not None and math.isfinite(v))
        time = f", {1e3 * self.seconds:.1f} ms" if self.seconds else ""
        return (
            f"{self.module or 'U-Net'} {self.side}: {self.records} of shape {list(self.shape)} {self.dtype}, "
            f"NaN {self.nan}, Inf {self.inf}, {said or 'nothing finite'}{time}"
        )


Statistics = Mapping[tuple[str, Side], LayerStatistics]
"""By module and side, in the order in which modules were first seen."""
