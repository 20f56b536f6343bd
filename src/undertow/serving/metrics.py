"""What Prometheus is told. The process that answers clients counts for itself; workers are other processes, and hand
over a snapshot of their counters with every beat, which the collector here reads from the store. No torch.

No label holds a prompt, a job, a key or an adapter: their number has no bound.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX = "undertow"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of what `exposition` returns."""

Snapshot = Mapping[str, Any]
"""Metrics of one worker as JSON: families by name, each with its kind, its help and its samples."""


def size_class(cells: int) -> str:
    """The label `bucket` of a picture of so many latent cells: the power of two that is not below it."""
    return str(1 << max(0, cells - 1).bit_length())


class ApiMetrics:
    """What the process that answers clients counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make = _Maker(self.registry)
        self.requests = make.counter("requests", "HTTP answers.", "route", "code")
        self.request_seconds = make.histogram("request_seconds", "Until the answer began.", SECONDS, "route")
        self.admission_rejected = make.counter("admission_rejected", "Jobs refused when submitted.", "reason")
        self.accepted = make.counter("jobs_accepted", "Jobs that became durable.", "reused")
        self.webhooks = make.counter("webhooks", "Deliveries tried.", "result")
        self.event_streams = make.gauge("event_streams", "Clients that follow a job now.")

    def exposition(self, *collectors: "SnapshotCollector | GaugeCollector") -> bytes:
        """Everything as text, as Prometheus scrapes it. collectors: of other processes, read now."""
        everything = CollectorRegistry()
        for collector in (self.registry, *collectors):
            everything.register(collector)  # pyright: ignore[reportArgumentType]  # a registry collects too
        return generate_latest(everything)


class WorkerMetrics:
    """What a worker counts, in the four groups of the source document: performance, quality, resources, adapters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make = _Maker(self.registry)
        # Performance
        self.step_seconds = make.histogram(
            "step_seconds", "One forward of the U-Net.", SECONDS, "model", "bucket", "rows"
        )
        self.batch_rows = make.histogram("batch_rows", "Rows that shared a forward.", ROWS)
        self.batch_fill = make.histogram("batch_fill_ratio", "Share of a forward's rows that were wanted.", SHARES)
        self.padding_rows = make.counter("padding_rows", "Rows computed only to keep a forward's number of rows.")
        self.row_steps = make.counter("row_steps", "Rows times steps.", "model")
        self.images = make.counter("images", "Pictures drawn.", "model")
        self.replayed_steps = make.counter("replayed_steps", "Steps taken from the log of an earlier attempt.")
        self.text_encode_seconds = make.histogram("text_encode_seconds", "Encoding of a request.", SECONDS)
        self.vae_decode_seconds = make.histogram("vae_decode_seconds", "Decoding of a picture.", SECONDS)
        self.preview_seconds = make.histogram("preview_seconds", "Making of a preview.", SECONDS)
        self.queue_wait_seconds = make.histogram("queue_wait_seconds", "From submit to claim.", SECONDS)
        self.first_step_seconds = make.histogram("time_to_first_step_seconds", "From submit to step 1.", SECONDS)
        self.e2e_seconds = make.histogram("e2e_seconds", "From submit to the end.", SECONDS, "outcome")
        self.cancel_seconds = make.histogram("cancel_latency_seconds", "From the wish to the end.", SECONDS)
        self.last_step = make.gauge("engine_last_step_timestamp_seconds", "When the last forward ended.")
        # Quality, as far as it shows without knowing what was meant
        self.not_finite = make.counter("not_finite", "Rows in which NaN or infinity appeared.", "model")
        # Resources
        self.memory_bytes = make.gauge("memory_bytes", "Of the worker's device now.", "kind")
        self.predicted_bytes = make.gauge("predicted_bytes", "Forecast peak of the newest plan.", "model")
        self.peak_bytes = make.gauge("peak_bytes", "Measured peak of the newest request.", "model")
        self.parameters = make.gauge("parameters", "Of the loaded networks.", "model")
        self.out_of_memory = make.counter("oom", "Times that memory ran out.", "model")
        # Adapters
        self.batch_adapters = make.histogram("batch_distinct_adapters", "Adapters that acted in one forward.", ROWS)
        self.adapter_uses = make.counter("adapter_uses", "Adapters that jobs were drawn with.", "model", "kind")
        # Promises
        self.jobs = make.counter("jobs", "Jobs that this worker ended.", "outcome")
        self.promise_error_seconds = make.histogram(
            "promise_error_seconds", "Between the promised and the real end of a job.", SECONDS, "side"
        )
        self.promises = make.counter("promises", "Jobs done within 10 % or a second of the promise.", "kept")
        self.attempts = make.counter("attempts", "Jobs that this worker claimed.")
        self.fence_rejected = make.counter("fence_rejected", "Results that came after the lease was lost.")
        self.lease_expired = make.counter("lease_expired", "Leases of others that this worker found expired.")
        self.poison = make.counter("poison", "Jobs given up because they cost too many workers.")

    def snapshot(self) -> dict[str, Any]:
        """All values now, as JSON for the store; series that were never touched are left out."""
        families = {}
        for metric in self.registry.collect():
            samples = [
                [one.name, dict(one.labels), one.value] for one in metric.samples if not one.name.endswith("_created")
            ]
            if samples:
                families[metric.name] = {"kind": metric.type, "help": metric.documentation, "samples": samples}
        return families


class SnapshotCollector(Collector):
    """Metrics of other processes, joined under the label `worker`.

    read: gives the newest snapshots by worker; it is called at every scrape.
    """

    def __init__(self, read: Callable[[], Mapping[str, Snapshot]]):
        self._read = read

    def collect(self) -> Iterable[Metric]:
        joined: dict[str, Metric] = {}
        for worker, families in self._read().items():
            for name, family in families.items():
                metric = joined.setdefault(name, Metric(name, family["help"], family["kind"]))
                for sample, labels, value in family["samples"]:
                    metric.add_sample(sample, {**labels, "worker": worker}, float(value))
        return joined.values()


class GaugeCollector(Collector):
    """Gauges that are read where the truth is, at every scrape. read: gives (name, help, label, values by label)."""

    def __init__(self, read: Callable[[], Sequence[tuple[str, str, str, Mapping[str, float]]]]):
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, documentation, label, values in self._read():
            metric = Metric(f"{PREFIX}_{name}", documentation, "gauge")
            for key, value in values.items():
                metric.add_sample(metric.name, {label: key} if label else {}, float(value))
            yield metric


class _Maker:
    """Makes metrics with our prefix in one registry."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry

    def counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", documentation, labels, registry=self._registry)

    def gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", documentation, labels, registry=self._registry)

    def histogram(self, name: str, documentation: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", documentation, labels, buckets=buckets, registry=self._registry)
