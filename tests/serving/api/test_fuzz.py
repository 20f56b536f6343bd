"""Schemathesis: requests that fit the description, and requests that nearly do, at every route. `make api-fuzz` sends
more."""

import os
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.api.stand_in import Api
from undertow.records import Record, schema_of
from undertow.serving.store.records import WorkerInfo

schemathesis.serializer.alias("application/x-safetensors", "application/octet-stream")

EXAMPLES = int(os.environ.get("UNDERTOW_API_EXAMPLES", "2"))
"""For each route and each kind of request."""

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def _make_schemas() -> None:
    """Of every record, as a service has them that has run for a while: in some versions of Python the thread that draws
    may not parse their sources while Hypothesis parses tests (`records.schema_of`)."""
    waiting = [Record]
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        for record in found:
            if record.__module__.startswith("undertow."):
                schema_of(record)


# Schemathesis draws from `random` inside its strategies, and whether Hypothesis notices depends on what ran before.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.timeout(0 if EXAMPLES > 20 else 300)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "nearly"])
def test_no_request_is_a_server_error_and_every_answer_is_as_described(drawing: Api, mode):
    """Every answer has a documented status, content type and schema."""
    _make_schemas()
    api = drawing  # some routes answer when the picture is there
    headers = api.key("fuzz", "submit", "read", "admin")
    worker = WorkerInfo(name="w", device="cpu", pid=1, state="idle", models=("emoji",))
    description = schemathesis.openapi.from_asgi("/openapi.json", api.app)
    codes = set()
    for found in description.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):  # of a job that waits they do not end
            continue

        @settings(
            max_examples=EXAMPLES,
            database=None,
            derandomize="UNDERTOW_API_EXAMPLES" not in os.environ,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case):
            api.store.workers.hello(worker)  # or else it is soon taken for dead
            answer = case.call(headers=headers)
            codes.add(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        with suppress(Unsatisfiable):  # there is nothing that could be wrong with a route that takes nothing
            send()
    assert {200, 404, 422} <= codes if mode is GenerationMode.POSITIVE else 422 in codes
