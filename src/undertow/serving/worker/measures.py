"""What a worker counts for Prometheus; it hands a snapshot over with what it says of itself."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from undertow.engine.events import WorkEvent
from undertow.engine.result import GenerationResult
from undertow.serving.failures import FailureCode
from undertow.serving.jobs import Claim, JobState
from undertow.serving.metrics import WorkerMetrics, size_class
from undertow.serving.tracing import StageBegun, Tracing
from undertow.serving.worker.models import Loaded

KEPT_S, KEPT_SHARE = 1.0, 0.10
"""A promise is kept if it is off by at most so much, or by this share of the time that the job took."""


class Measures:
    """clock: of the store, by which jobs were submitted. tracing: is told of jobs that have ended. device: whose memory
    is shown."""

    def __init__(self, clock: Callable[[], float], tracing: Tracing, device: str = "cpu"):
        self._device = device
        self.metrics = WorkerMetrics()
        self.tracing = tracing
        self._clock = clock

    def snapshot(self) -> dict[str, Any]:
        for kind, size in _memory(self._device).items():
            self.metrics.memory_bytes.labels(kind).set(size)
        return self.metrics.snapshot()

    def stored(self, kind: str, operation: str, value: float) -> None:
        """What the store tells its observers."""
        del operation
        if kind == "lost":
            self.metrics.lease_expired.inc(value)
        elif kind == "poison":
            self.metrics.poison.inc(value)

    def previewed(self, seconds: float) -> None:
        self.metrics.preview_seconds.observe(seconds)

    def canceled(self, wished_at: float) -> None:
        self.metrics.cancel_seconds.observe(max(0.0, self._clock() - wished_at))

    def watcher(self, model: str) -> Callable[[WorkEvent], None]:
        """Counts an engine's units of work."""
        count = self.metrics

        def watch(event: WorkEvent) -> None:
            if event.kind == "encode":
                count.text_encode_seconds.observe(event.seconds)
            elif event.kind == "decode":
                count.vae_decode_seconds.observe(event.seconds)
            elif event.size is not None:
                cells, computed = event.size[0] * event.size[1], event.computed_rows
                count.step_seconds.labels(model, size_class(cells), str(computed)).observe(event.seconds)
                count.batch_rows.observe(event.rows)
                count.batch_fill.observe(event.rows / max(1, computed))
                count.padding_rows.inc(computed - event.rows)
                count.row_steps.labels(model).inc(event.rows)
                count.batch_adapters.observe(event.adapters)
                count.not_finite.labels(model).inc(event.failed_rows)
                count.last_step.set(time.time())

        return watch

    def loaded(self, loaded: Loaded) -> None:
        unet = loaded.service.model.require_unet()
        self.metrics.parameters.labels(loaded.entry.name).set(sum(one.numel() for one in unet.parameters()))
        self.metrics.predicted_bytes.labels(loaded.entry.name).set(loaded.needed_bytes)

    def claimed(self, claim: Claim) -> None:
        self.metrics.attempts.inc()
        self.metrics.queue_wait_seconds.observe(max(0.0, self._clock() - claim.job.submitted_at))

    def entered(self, claim: Claim) -> None:
        """A job's first step."""
        self.metrics.first_step_seconds.observe(max(0.0, self._clock() - claim.job.submitted_at))

    def ended(self, claim: Claim, outcome: str, *, kept: bool, stages: Sequence[StageBegun] = ()) -> None:
        """kept: whether the fence held. stages: of the job, where it had any."""
        if not kept:
            self.metrics.fence_rejected.inc()
            return
        self.tracing.job(claim, outcome, self._clock(), stages)
        self.metrics.jobs.labels(outcome).inc()
        took = max(0.0, self._clock() - claim.job.submitted_at)
        self.metrics.e2e_seconds.labels(outcome).observe(took)
        if outcome == JobState.SUCCEEDED and claim.job.promised_at is not None:
            error = took - (claim.job.promised_at - claim.job.submitted_at)
            self.metrics.promise_error_seconds.labels("late" if error > 0 else "early").observe(abs(error))
            self.metrics.promises.labels("yes" if abs(error) <= max(KEPT_S, KEPT_SHARE * took) else "no").inc()
        if outcome == FailureCode.OUT_OF_MEMORY:
            self.metrics.out_of_memory.labels(claim.job.spec.model).inc()

    def drew(self, claim: Claim, result: GenerationResult, replayed_steps: int) -> None:
        model = claim.job.spec.model
        self.metrics.images.labels(model).inc(len(result.images))
        self.metrics.replayed_steps.inc(replayed_steps)
        for used in result.report.files.adapters:
            self.metrics.adapter_uses.labels(model, used.kind).inc()
        with suppress(ValueError):  # nothing was measured
            self.metrics.peak_bytes.labels(model).set(max(result.report.memory.peaks.values()))


def _memory(device: str) -> dict[str, int]:
    """Bytes by kind: of a GPU what PyTorch holds, else what of the process is in memory, where the system tells."""
    if device.startswith("cuda"):
        return {"allocated": torch.cuda.memory_allocated(device), "reserved": torch.cuda.memory_reserved(device)}
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"resident": pages * os.sysconf("SC_PAGE_SIZE")}
    return {}
