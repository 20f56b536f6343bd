"""What a request needed of memory, and what was done about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from undertow.memory.ladder import Economy, StepDown
from undertow.shortage import size_in_words


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """peaks: the most memory while each kind of work was done ("text", "denoise", "decode"), in bytes: resident memory
    of the process, or what PyTorch reserved on a CUDA device, everything else in it included; empty where nobody tells.
    forecast_bytes: what was expected of the whole process, with as many
    rows in a forward as the limits allow where other requests shared one, and with padding; `None` where nobody can
    tell. budget_bytes: what was asked
    for. tensors_bytes: the most that weights and activations took together; counted under a budget only. economy: what
    was done at the end to need less; course: from when on. Two requests with equal courses have pictures of equal
    bytes. evictions: how often a network left memory while the request was worked on."""

    peaks: Mapping[str, int] = field(default_factory=dict)
    forecast_bytes: int | None = None
    budget_bytes: int | None = None
    tensors_bytes: int | None = None
    economy: Economy = Economy()
    course: tuple[StepDown, ...] = ()
    evictions: int = 0

    @property
    def peak_bytes(self) -> int | None:
        """The most of all; `None` where nobody tells."""
        return max(self.peaks.values(), default=None)

    @property
    def decisions(self) -> tuple[str, ...]:
        """What was done to need less, and whether the budget was kept to, in words."""
        return (*map(str, self.course), *self._over_budget())

    def _over_budget(self) -> tuple[str, ...]:
        """The tracker does not see what an operation needs inside, nor what else the process holds."""
        peak, budget = self.peak_bytes, self.budget_bytes
        if peak is None or budget is None or peak <= budget:
            return ()
        return (f"memory: the peak was {size_in_words(peak)}, above the budget of {size_in_words(budget)}",)
