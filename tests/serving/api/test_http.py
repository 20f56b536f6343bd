"""What every answer has in common: problems, limits of bodies and headers, the description."""

import json
import re
import subprocess
import sys
import time

import pytest

from tests.serving.api.stand_in import DRAWN, is_problem, open_api
from undertow.serving.api.bodies import DEPTH, parse_object
from undertow.serving.api.problems import KINDS, Problem
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import JobState
from undertow.serving.settings import ServerSettings

JSON = {"Content-Type": "application/json"}


def test_a_path_that_there_is_not_names_a_near_one(api):
    is_problem(api.client.get("/v1/jbos"), 404, "not_found", "'/v1/jbos'", "'/v1/jobs'")
    is_problem(api.client.get("/nothing/like/it"), 404, "not_found")


def test_another_method_is_told_which_there_are(api):
    answer = api.client.patch("/v1/jobs")
    is_problem(answer, 405, "method_not_allowed", "PATCH")
    assert set(re.findall(r"\w+", answer.headers["allow"])) <= {"GET", "POST"}


def test_a_bug_is_an_incident_and_no_traceback(api, monkeypatch, caplog):
    """The client is told a number, under which the log has the traceback."""

    def stumble(*_, **__):
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(api.store, "jobs", stumble)
    answer = api.client.get("/v1/jobs")
    problem = is_problem(answer, 500, "internal", "report incident")
    assert problem["fault"] == "engine"
    assert "secret" not in answer.text
    assert f"incident {problem['incident']}" in caplog.text
    assert "a secret of ours" in caplog.text


def test_a_store_that_is_away_is_said_to_be(api, monkeypatch):
    """Readiness does not keep jobs away: only a store that cannot be written does."""
    from undertow.serving.store.records import StoreError

    def locked(*_, **__):
        raise StoreError("undertow.db", "locked", "it is locked", "wait")

    monkeypatch.setattr(api.store, "submit", locked)
    answer = api.client.post("/v1/jobs", json=DRAWN)
    assert is_problem(answer, 503, "not_ready", "locked")["may_retry"] is True
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "body is a list, expected a JSON object"),
        (b"null", "body is null, expected a JSON object"),
        (b"true", "body is true or false, expected a JSON object"),
        (b"0.5", "body is a number, expected a JSON object"),
        (b'"owl"', "body is text, expected a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"prompt": 1, "prompt": 2}', "'prompt' is given twice"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "Unicode"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", f"{DEPTH} levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        ("{}".encode("utf-16"), "UTF-8"),
    ],
)
def test_what_is_no_json_object_is_refused(api, body, words):
    is_problem(api.client.post("/v1/jobs", content=body, headers=JSON), 400, "malformed", words)


@pytest.mark.parametrize("filler", ["[", '"', '\\"', '"\\', "{", '["'])
def test_large_nonsense_costs_little(filler):
    """Linear in the body: a megabyte takes well under a second, whatever is in it."""
    with pytest.raises(Problem):
        parse_object(b'{"a": "' + filler.encode() * 2**19)


def test_brackets_in_strings_are_no_depth():
    assert parse_object(json.dumps({"prompt": "[" * 100 + '\\"'}).encode())["prompt"] == "[" * 100 + '\\"'


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_refused(api, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    is_problem(
        api.client.post("/v1/jobs", content=b"{}", headers=headers), 415, "unsupported_media_type", "application/json"
    )


def test_a_body_that_is_too_large_is_refused_before_it_is_read(make_api):
    """By what the header says, and where there is none while it comes in."""
    api = make_api(max_body_bytes=1024)
    is_problem(api.client.post("/v1/jobs", content=b"x" * 2000, headers=JSON), 413, "too_large", "2,000")
    sent = []

    def stream():
        for _ in range(100):
            sent.append(1)
            yield b"x" * 100

    is_problem(api.client.post("/v1/jobs", content=stream(), headers=JSON), 413, "too_large", "1,024")


def test_headers_and_paths_have_a_bound(api):
    is_problem(api.client.get("/v1/jobs", headers={"X-Long": "x" * 40_000}), 431, "headers_too_large", "32,768")
    is_problem(api.client.get("/v1/jobs/" + "x" * 9_000), 431, "headers_too_large")
    is_problem(api.client.get("/v1/jobs/" + "x" * 5_000), 404, "job_not_found")


def test_pages_of_others_are_answered_only_where_they_are_allowed(make_api):
    page = {"Origin": "https://page.example"}
    ask = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
    closed, opened = make_api(), make_api(cors=("https://page.example",))
    assert "access-control-allow-origin" not in closed.client.options("/v1/jobs", headers=ask).headers
    allowed = opened.client.options("/v1/jobs", headers=ask)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert opened.client.get("/v1/jobs", headers=page).headers["access-control-allow-origin"] == "https://page.example"


def test_the_description_is_whole_and_comes_from_the_library_s_records(api):
    description = api.client.get("/openapi.json").json()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)))
    assert named <= description["components"]["schemas"].keys()
    job = description["components"]["schemas"]["JobRequest"]
    assert job["properties"]["steps"]["minimum"] == 1
    assert job["properties"]["strength"]["description"] == "How much of the image may change, from 0 to 1."
    assert job["properties"]["priority"]["maximum"] == 10
    assert set(description["components"]["schemas"]["JobState"]["enum"]) == set(JobState)
    assert "HTTPValidationError" not in description["components"]["schemas"]
    for path in description["paths"].values():
        for operation in path.values():
            assert operation["description"]
            assert "default" in operation["responses"] or "/health" in str(path)


def test_the_page_needs_nothing_from_elsewhere_and_explains_every_problem(api):
    page = api.client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    for code in KINDS:
        assert f'id="{code}"' in page
    assert "POST /v1/jobs" in page


def test_the_api_imports_no_torch():
    """Nor anything else that is slow: API processes start at once, and no model can take them down."""
    script = (
        "import sys, undertow.serving.api.app, undertow.cli.serve, undertow.cli.keys\n"
        "print([name for name in ('torch', 'transformers', 'cv2', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_files_are_hashed_when_it_starts(memory_folder):
    """Gigabytes of a model are read before somebody waits for a job of it."""
    catalog = Catalog(ServerSettings())
    api = open_api(memory_folder / "hashed", catalog)
    until = time.monotonic() + 30
    with api.client:
        while "hash" not in vars(catalog.models["emoji"]) and time.monotonic() < until:
            time.sleep(0.01)
    api.close()
    assert "hash" in vars(catalog.models["emoji"])


def test_a_compressed_body_is_refused_as_such(api):
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = api.client.post("/v1/jobs", content=b"\x1f\x8b", headers=headers)
    is_problem(answer, 415, "unsupported_media_type", "content encoding is 'gzip'")
