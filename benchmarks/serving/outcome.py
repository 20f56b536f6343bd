"""What became of the requests of a trace, in numbers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WITHIN_SHARE, WITHIN_S = 0.10, 1.0
"""A finish time holds if it is off by at most this share of the time that the job took, or by a second."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One request, in seconds from its arrival. submitted: until the server had it for sure. first_step: until its
    first step was done; `None` where a server does not say. done: until its pictures were there; `None` for one that
    was refused. promised: the server's own forecast of `done` when it took the request."""

    steps: int
    pictures: int
    submitted: float
    first_step: float | None = None
    done: float | None = None
    promised: float | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the promise held; `None` without one."""
        if self.done is None or self.promised is None:
            return None
        return abs(self.done - self.promised) <= max(WITHIN_S, WITHIN_SHARE * self.done)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of all requests of a trace. steps_per_s, pictures_per_s: from the first arrival to the last picture."""

    requests: int
    refused: int
    pictures_per_s: float
    steps_per_s: float
    submitted_p99: float
    first_step_p50: float | None
    first_step_p95: float | None
    done_p50: float
    done_p95: float
    done_p99: float
    kept: float | None


def summary(drawn: Sequence[Drawn], seconds: float) -> Summary:
    """seconds: from the first arrival to the last picture."""
    done = [one for one in drawn if one.done is not None]
    kept = [one.kept for one in done if one.kept is not None]
    first = [one.first_step for one in done if one.first_step is not None]
    times = [one.done for one in done if one.done is not None]
    return Summary(
        requests=len(drawn),
        refused=len(drawn) - len(done),
        pictures_per_s=sum(one.pictures for one in done) / seconds,
        steps_per_s=sum(one.steps * one.pictures for one in done) / seconds,
        submitted_p99=quantile([one.submitted for one in drawn], 0.99),
        first_step_p50=quantile(first, 0.5) if first else None,
        first_step_p95=quantile(first, 0.95) if first else None,
        done_p50=quantile(times, 0.5),
        done_p95=quantile(times, 0.95),
        done_p99=quantile(times, 0.99),
        kept=statistics.fmean(kept) if kept else None,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else math.nan
