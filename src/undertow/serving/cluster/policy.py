"""What Ray Serve's controller asks how many replicas there should be. Imports no Ray: it is given all that it reads."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from undertow.serving.cluster.load import Load, replicas_for

SECONDS, JOBS = "undertow_work_seconds", "undertow_jobs"
"""What every replica reports of the whole queue."""


class Sample(Protocol):
    """A figure that was reported, and when."""

    timestamp: float
    value: float


class Context(Protocol):
    """What is read of Ray Serve's `AutoscalingContext`. raw_metrics: by name and replica."""

    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[Sample]]] | None: ...


class QueuePolicy:
    """An autoscaling policy of Ray Serve. Its delays are Ray Serve's own (`upscale_delay_s`, `downscale_delay_s`)."""

    def __init__(self, catch_up_s: float):
        self.catch_up_s = catch_up_s

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """How many, and no state. As many as there are where nobody has said anything yet."""
        said = context.raw_metrics or {}
        seconds, jobs = _newest(said.get(SECONDS, {})), _newest(said.get(JOBS, {}))
        if seconds is None or jobs is None:
            return context.target_num_replicas, {}
        wanted = replicas_for(
            Load(seconds=seconds, jobs=round(jobs)),
            catch_up_s=self.catch_up_s,
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
        )
        return wanted, {}


def _newest(by_replica: Mapping[Any, Sequence[Sample]]) -> float | None:
    """All replicas look at the same queue: the last to look knows best."""
    samples = [sample for series in by_replica.values() for sample in series]
    return max(samples, key=lambda one: one.timestamp).value if samples else None
