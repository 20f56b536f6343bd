"""Spans go to a collector over HTTP. That none answers is said once, and once more when it does: OpenTelemetry's own
exporter says it at every try, several times a minute for as long as the service runs."""

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

OF_EXPORTERS = "opentelemetry.exporter"
OF_QUEUES = "opentelemetry.sdk._shared_internal"
"""Loggers of OpenTelemetry that speak at every try, and at every span that finds no place in a queue."""


class SpansOverHttp(SpanExporter):
    """exporter: what sends them; as the OTEL_* environment says when `None`. Errors: those of `OTLPSpanExporter` for
    an environment that makes no sense."""

    def __init__(self, exporter: SpanExporter | None = None):
        self._exporter = OTLPSpanExporter() if exporter is None else exporter
        self._heard = _Heard()
        self._fails = False
        for name in (OF_EXPORTERS, OF_QUEUES):
            theirs = logging.getLogger(name)
            theirs.handlers, theirs.propagate = [self._heard], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._heard.first = ""
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            logger.warning(
                "traces are not delivered (%s), and those of this time are lost: start a collector, or say where one "
                "is with OTEL_EXPORTER_OTLP_ENDPOINT. This is said once; jobs are drawn as ever",
                self._heard.first or "no reason was given",
            )
        elif self._fails and not fails:
            logger.info("traces are delivered again")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Heard(logging.Handler):
    """Remembers what OpenTelemetry said first of an export: the cause, before that it gives up."""

    first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or " ".join(record.getMessage().split())[:300]
