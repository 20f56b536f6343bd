"""One trace from the client's own span over the HTTP request to the job and its stages, by OpenTelemetry's SDK."""

import builtins
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from undertow import MissingDependency
from undertow.serving.api.app import create_app
from undertow.serving.span_exporter import SpansOverHttp
from undertow.serving.tracing import OpenTelemetry, Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
"""Of https://www.w3.org/TR/trace-context/#examples-of-http-traceparent-headers."""
HEADER = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return OpenTelemetry(provider)


def client_of(place, tracing):
    app = create_app(
        place.settings, place.store, artifact_folder=place.artifacts, catalog=place.catalog, tracing=tracing
    )
    return TestClient(app, base_url="http://127.0.0.1")


def test_a_job_is_a_part_of_its_clients_trace(place, tracing, spans):
    client, worker = client_of(place, tracing), place.worker(tracing=tracing)
    wanted = {"prompt": "a secret prompt", "steps": 2, "adapters": ["three"]}
    assert client.post("/v1/jobs", json=wanted, headers={"traceparent": HEADER}).status_code == 202
    (job,) = place.store.jobs()
    place.finish(worker, job.id)
    told = {span.name: span for span in spans.get_finished_spans()}
    request, drawn = told["POST /v1/jobs"], told["job"]
    assert {format(span.context.trace_id, "032x") for span in told.values()} == {TRACE}
    assert format(request.parent.span_id, "016x") == PARENT
    assert (request.kind, drawn.kind) == (SpanKind.SERVER, SpanKind.CONSUMER)
    assert request.attributes["http.response.status_code"] == 202
    assert drawn.parent.span_id == request.context.span_id
    assert drawn.attributes["undertow.job.id"] == job.id
    assert drawn.attributes["undertow.job.outcome"] == "succeeded"
    stages = [
        span for span in spans.get_finished_spans() if span.parent and span.parent.span_id == drawn.context.span_id
    ]
    names = [span.name for span in stages]
    assert [name for name in names if name != "load"] == ["queue", "encode", "denoise", "decode", "publish"]
    assert stages[0].start_time == drawn.start_time
    assert all(before.end_time == after.start_time for before, after in pairwise(stages))
    assert stages[-1].end_time == drawn.end_time
    said = str([dict(span.attributes) for span in told.values()])
    assert "secret" not in said
    assert "three" not in said


def test_a_job_that_fails_is_an_error_and_a_retry_goes_on_in_the_trace(place, tracing, spans):
    client = client_of(place, tracing)
    wanted = {"prompt": "a", "steps": 2, "adapters": ["endless"]}
    id = client.post("/v1/jobs", json=wanted, headers={"traceparent": HEADER}).json()["id"]
    place.store.claim("lost", lambda waiting: [id], 30.0)
    place.store.expire_leases(worker="lost")
    place.finish(place.worker("second", tracing=tracing), id)
    (job,) = [span for span in spans.get_finished_spans() if span.name == "job"]
    assert format(job.context.trace_id, "032x") == TRACE
    assert (job.status.status_code, job.attributes["undertow.job.outcome"]) == (StatusCode.ERROR, "non_finite")


@pytest.mark.parametrize("given", [None, "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
def test_what_is_no_traceparent_begins_a_trace_of_its_own(place, tracing, given):
    headers = {} if given is None else {"traceparent": given}
    client = client_of(place, tracing)
    id = client.post("/v1/jobs", json={"prompt": "a"}, headers=headers).json()["id"]
    assert TRACE not in (place.store.job(id).traceparent or TRACE)
    untold = client_of(place, Tracing()).post("/v1/jobs", json={"prompt": "a"}, headers=headers).json()["id"]
    assert place.store.job(untold).traceparent is None


def test_clients_of_other_services_are_traced_too(place, tracing):
    """A1111's, which waits: the job is asked for before the answer, and canceled when nobody waits any more."""
    headers = {"traceparent": HEADER}

    def cancel():
        while not (found := place.store.jobs()):
            time.sleep(0.01)
        place.store.cancel(found[0].id)

    canceling = threading.Thread(target=cancel)
    canceling.start()
    client_of(place, tracing).post("/sdapi/v1/txt2img", json={"prompt": "a", "steps": 2}, headers=headers)
    canceling.join()
    assert TRACE in place.store.jobs()[0].traceparent


def test_without_telemetry_a_job_keeps_the_trace_of_its_client(place):
    id = (
        client_of(place, Tracing()).post("/v1/jobs", json={"prompt": "a"}, headers={"traceparent": HEADER}).json()["id"]
    )
    assert place.store.job(id).traceparent == HEADER


def test_telemetry_that_is_not_installed_is_said_with_its_extra(monkeypatch):
    usual = builtins.__import__

    def without(name, *rest):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"'opentelemetry-sdk': pip install 'undertow.telemetry.'"):
        OpenTelemetry()


class Collector(BaseHTTPRequestHandler):
    """Takes what it is given."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_that_no_collector_answers_is_said_once_and_so_is_that_one_does(caplog):
    caplog.set_level("INFO")
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        port = server.server_port
    url = f"http://127.0.0.1:{port}/v1/traces"
    exporter = SpansOverHttp(OTLPSpanExporter(url, timeout=0.05))
    span = TracerProvider().get_tracer("a test").start_span("job")
    span.end()

    def said():
        found = [record.getMessage() for record in caplog.records if "urllib3" not in record.name]
        caplog.clear()
        return found

    for _ in range(3):
        assert exporter.export([span]) is SpanExportResult.FAILURE
    (warning,) = said()
    assert warning.startswith("traces are not delivered (Failed to export")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in warning
    with HTTPServer(("127.0.0.1", port), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(2):
            assert exporter.export([span]) is SpanExportResult.SUCCESS
        server.shutdown()
    assert said() == ["traces are delivered again"]
