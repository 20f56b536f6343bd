"""One trace for each job: a span of the HTTP request that asked for it, one of the job, and one of each of its stages.

Spans go where the OTEL_* environment says, by OpenTelemetry's own exporter. Names follow its semantic conventions for
HTTP (https://opentelemetry.io/docs/specs/semconv/http/http-spans/); prompts and names of adapters are in no span.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from undertow.extras import optional_package
from undertow.serving.jobs import Claim, JobState

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""Of the HTTP request that is being answered; a job keeps it, so that whichever worker draws it continues the trace."""

NEEDED: Mapping[str, str] = {
    "opentelemetry": "opentelemetry-sdk",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
"""Modules of the extra `telemetry`, and the packages that they come with."""

SPANS = {"waiting": "load", "encoding": "encode", "denoising": "denoise", "decoding": "decode", "publishing": "publish"}
"""By stage of a job."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""

Answered = Callable[[str, int], None]
"""Called with the route and the status of an answer."""


@dataclass(frozen=True, kw_only=True)
class StageBegun:
    """stage: of a job, as its progress has it. at: seconds since 1970."""

    stage: str
    at: float


class Tracing:
    """Tells nobody, and hands on which trace a request belongs to."""

    @contextmanager
    def request(self, method: str, path: str, traceparent: str | None) -> Generator[Answered]:
        """Stands around the answer to an HTTP request. traceparent: the header of that name."""
        with _within(traceparent if traceparent is not None and _TRACEPARENT.fullmatch(traceparent) else None):
            yield lambda route, status: None

    def job(self, claim: Claim, outcome: str, ended_at: float, stages: Sequence[StageBegun] = ()) -> None:
        """A worker has ended a job. outcome: a state, or the code of a failure. stages: in order."""

    def close(self) -> None:
        """Sends what has not been sent."""


class OpenTelemetry(Tracing):
    """provider: as the OTEL_* environment says when `None`. Errors: `MissingDependency`."""

    def __init__(self, provider: "TracerProvider | None" = None):
        with optional_package("opentelemetry-sdk", "telemetry"):
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415
        self._provider = _exporting() if provider is None else provider
        self._tracer = self._provider.get_tracer("undertow", metadata.version("undertow"))
        self._headers = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, path: str, traceparent: str | None) -> Generator[Answered]:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415

        attributes = {"http.request.method": method, "url.path": path}
        span = self._tracer.start_span(method, self._parent(traceparent), SpanKind.SERVER, attributes)
        carried: dict[str, str] = {}
        self._headers.inject(carried, set_span_in_context(span))

        def answered(route: str, status: int) -> None:
            span.update_name(f"{method} {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": status})
            if status >= 500:
                span.set_status(StatusCode.ERROR)

        try:
            with _within(carried.get("traceparent")):
                yield answered
        finally:
            span.end()

    def job(self, claim: Claim, outcome: str, ended_at: float, stages: Sequence[StageBegun] = ()) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415

        job = claim.job
        attributes = {
            "undertow.job.id": job.id,
            "undertow.job.attempt": job.attempt,
            "undertow.job.outcome": outcome,
            "undertow.model": job.spec.model,
            "undertow.mode": job.spec.mode,
            "undertow.steps": job.work.steps,
            "undertow.pictures": job.work.pictures,
            "undertow.worker": claim.worker,
        }
        parent = self._parent(job.traceparent)
        span = self._tracer.start_span("job", parent, SpanKind.CONSUMER, attributes, start_time=_ns(job.submitted_at))
        inside = set_span_in_context(span)
        names = ["queue", *(SPANS.get(one.stage, one.stage) for one in stages)]
        times = [job.submitted_at, *(one.at for one in stages), ended_at]
        if stages:
            for name, begun, ended in zip(names, times, times[1:], strict=False):
                self._tracer.start_span(name, inside, start_time=_ns(begun)).end(_ns(ended))
        if outcome not in set(JobState):
            span.set_status(StatusCode.ERROR, outcome)
        span.end(_ns(ended_at))

    def close(self) -> None:
        self._provider.shutdown()

    def _parent(self, traceparent: str | None) -> "Context":
        return self._headers.extract({} if traceparent is None else {"traceparent": traceparent})


def tracing_of(telemetry: bool) -> Tracing:
    """Errors: `MissingDependency`."""
    return OpenTelemetry() if telemetry else Tracing()


@contextmanager
def _within(traceparent: str | None) -> Generator[None]:
    token = TRACEPARENT.set(traceparent)
    try:
        yield
    finally:
        TRACEPARENT.reset(token)


def _exporting() -> "TracerProvider":
    with optional_package("opentelemetry-exporter-otlp-proto-http", "telemetry"):
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from undertow.serving.span_exporter import SpansOverHttp  # noqa: PLC0415
    named: dict[str, Any] = {"service.name": "undertow", **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(SpansOverHttp()))
    return provider


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
