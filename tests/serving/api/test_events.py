"""Server-sent events: the whole log from any place, and live."""

import json
import threading
from base64 import b64decode

import pytest

from tests.serving.api.stand_in import Api, is_problem, picture_bytes
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import JobProgress


def events(api: Api, job: str, headers: dict[str, str] | None = None, query: str = "") -> list[dict[str, str]]:
    """All events until the stream ends; comments under "comment"."""
    found: list[dict[str, str]] = [{}]
    with api.client.stream("GET", f"/v1/jobs/{job}/events{query}", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if not line:
                found.append({})
                continue
            name, _, value = line.partition(": ")
            found[-1][name or "comment"] = value
    ids = [int(event["id"]) for event in found if "id" in event]
    assert ids == sorted(set(ids))  # nothing is told twice
    return [event for event in found if event]


def kinds(found: list[dict[str, str]]) -> list[str]:
    return [event["event"] for event in found if "id" in event]


def test_the_log_of_a_finished_job_is_told_and_ends(api):
    job = api.submit()["id"]
    api.work()
    found = events(api, job)
    assert kinds(found) == ["accepted", "started", "succeeded"]
    assert [int(event["id"]) for event in found] == [1, 2, 3]
    assert json.loads(found[0]["data"])["job"] == job


@pytest.mark.parametrize(
    ("seen", "rest"), [("1", ["started", "succeeded"]), ("2", ["succeeded"]), ("3", []), ("99", [])]
)
def test_a_client_that_comes_back_misses_nothing(api, seen, rest):
    job = api.submit()["id"]
    api.work()
    assert kinds(events(api, job, {"Last-Event-ID": seen})) == rest


def test_events_come_live_with_progress_between_them(api):
    job = api.submit()["id"]
    (claim,) = api.claim()
    api.store.heartbeat("stand-in", [(claim, JobProgress(stage="denoising", step=1, steps=2))], lease_s=60.0)
    later = threading.Timer(0.3, lambda: api.publish(claim))
    later.start()
    found = events(api, job)
    later.join()
    assert kinds(found)[-1] == "succeeded"
    (step,) = [json.loads(event["data"]) for event in found if event.get("event") == "progress"]
    assert (step["stage"], step["step"], step["steps"]) == ("denoising", 1, 2)
    status = [json.loads(event["data"]) for event in found if "id" not in event]
    assert status[0]["state"] == "running"
    assert status[0]["finish_at"] == pytest.approx(api.store.job(job).submitted_at, abs=60)


@pytest.mark.parametrize("ending", ["failed", "canceled"])
def test_the_stream_ends_however_the_job_does(api, ending):
    job = api.submit()["id"]
    (claim,) = api.claim()
    if ending == "failed":
        api.fail(claim, Failure(code=FailureCode.NON_FINITE, detail="NaN"))
    else:
        api.client.delete(f"/v1/jobs/{job}")
        api.store.cancelled(claim)
    assert kinds(events(api, job))[-1] == ending


def test_a_silent_stream_is_kept_open_by_comments(api, monkeypatch):
    monkeypatch.setattr("undertow.serving.api.events.KEEP_ALIVE_S", 1)
    job = api.submit()["id"]
    later = threading.Timer(1.5, lambda: api.work())
    later.start()
    found = events(api, job)
    later.join()
    assert any("comment" in event for event in found)


def test_who_follows_with_previews_makes_the_worker_draw_them(api):
    job = api.submit()["id"]
    later = threading.Timer(0.2, lambda: api.work())
    later.start()
    found = events(api, job, query="?previews=true")
    later.join()
    assert api.store.job(job).preview_until > api.clock()
    assert json.loads(found[1]["data"])["preview"] == f"/v1/jobs/{job}/preview"


def test_previews_come_with_events_where_that_is_asked(api):
    job = api.submit()["id"]
    (claim,) = api.claim()
    content = picture_bytes()
    api.artifacts.put_preview(job, content)
    later = threading.Timer(0.3, lambda: api.publish(claim))
    later.start()
    found = events(api, job, query="?previews=inline")
    later.join()
    (preview,) = [json.loads(one["data"]) for one in found if one["event"] == "preview"]
    assert (preview["media_type"], b64decode(preview["base64"])) == ("image/png", content)
    assert not [one for one in found if one["event"] == "preview" and "id" in one], "it is no part of the log"


@pytest.mark.parametrize(
    ("headers", "query", "word"),
    [
        ({"Last-Event-ID": "x"}, "", "whole number"),
        ({"Last-Event-ID": "9" * 40}, "", "whole number"),
        ({}, "?previews=2", "true"),
    ],
)
def test_what_cannot_be_followed_is_refused(api, headers, query, word):
    job = api.submit()["id"]
    answer = api.client.get(f"/v1/jobs/{job}/events{query}", headers=headers)
    is_problem(answer, 422, "invalid_request", word)
