"""Looking into jobs and diagnosing them, as clients ask for it: who may, what is refused, what becomes a job."""

import pytest

from tests.serving.api.stand_in import DRAWN, is_problem, picture_bytes
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import JobSpec
from undertow.serving.store.rows import spec_hash

NOW = {"Prefer": "wait=0"}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/jobs", {}), ("/v1/jobs/mine", {}), ("/v1/plan", {}), ("/v1/batches", None)],
)
def test_to_look_into_a_job_takes_a_scope_of_its_own(api, path, body):
    wanted = {**DRAWN, "inspect": {"activations": True}}
    body, method = ({"jobs": [wanted]} if body is None else wanted), "PUT" if path.endswith("mine") else "POST"
    api.key("first")
    for scopes, status in ((("submit",), 403), (("submit", "inspect"), (200, 202)), (("admin",), (200, 202))):
        headers = api.key("-".join((path, *scopes)), *scopes)
        answer = api.client.request(method, path, json=body, headers=headers)
        if status == 403:
            is_problem(answer, 403, "forbidden", "expected inspect", "undertow keys add NAME --scope inspect")
        else:
            assert answer.status_code in status, answer.text


def test_a_job_says_what_is_looked_at_and_is_drawn_alone_to_be_profiled(api):
    job = api.submit(inspect={"attention_maps": {"words": ["apple"], "cells": [8]}, "debug": "sampler"})
    assert job["inspect"]["attention_maps"]["words"] == ["apple"]
    assert job["inspect"]["debug"] == "sampler"
    assert job["links"]["diagnosis"] == f"/v1/jobs/{job['id']}/diagnosis"
    assert api.store.job(job["id"]).alone is False
    assert api.store.job(api.submit(inspect={"profile": True})["id"]).alone is True
    looks = ({}, {"debug": "vae"}, {"activations": True}, {"debug": "layers", "activations": True})
    looked = [api.store.job(api.submit(inspect=look)["id"]) for look in looks]
    assert [one.work.longer for one in looked] == pytest.approx([1, 1, 1.13, 2.63])
    assert [one.cost / looked[0].cost for one in looked] == pytest.approx([1, 1, 1.13, 2.63])
    assert [one.work.after_s for one in looked] == [0, 0.25, 0.25, 0.25]
    assert api.submit(inspect={})["inspect"] is None
    assert api.submit(inspect={"debug": ""})["inspect"] is None


def test_a_job_without_it_is_the_same_as_before_there_was_any():
    """Names of clients and pictures that are there already are found by this hash after an update."""
    spec = JobSpec(model="m", request={"prompt": "p"}).to_json()
    assert spec.pop("inspect") is None
    assert spec_hash(JobSpec(model="m", request={"prompt": "p"}).to_json()) == spec_hash(spec)
    assert spec_hash({**spec, "inspect": {"profile": True}}) != spec_hash(spec)


@pytest.mark.parametrize(
    ("inspect", "argument", "word"),
    [
        ({"attention": True}, "inspect.attention", "attention_maps"),
        ({"attention_maps": {"cell": [8]}}, "inspect.attention_maps.cell", "'cells'"),
        ({"attention_maps": {"heads": [-1]}}, "inspect.attention_maps.heads.0", "equal to 0"),
        ({"attention_maps": {"words": []}}, "inspect.attention_maps.words", "at least 1"),
        ({"attention_maps": {"side": "left"}}, "inspect.attention_maps.side", "unconditional"),
        ({"debug": "tming"}, "inspect.debug", "'timing'"),
        ({"profile": True, "activations": True}, "inspect.profile", "alone"),
        ("all", "inspect", "object"),
        ({"attention_maps": {"words": ["red", "aple"]}}, "inspect.attention_maps.words", "'aple'"),
        ({"attention_maps": {"words": ["red"] * 65}}, "inspect.attention_maps.words", "at most 64"),
        ({"attention_maps": {"layers": ["up_blok.*"]}}, "inspect.attention_maps.layers", "up_blocks"),
        ({"attention_maps": {"cells": [999]}}, "inspect.attention_maps.cells", "sizes of these layers' maps: "),
        ({"attention_maps": {"heads": [99]}}, "inspect.attention_maps.heads", "attn2 has"),
        ({"attention_maps": {"at_steps": [0, 99]}}, "inspect.attention_maps.at_steps", "99, expected 0 to "),
        ({"attention_maps": {"side": "unconditional"}}, "inspect.attention_maps.words", "empty prompt"),
    ],
)
def test_what_means_nothing_is_refused_by_its_place(api, inspect, argument, word):
    problem = is_problem(api.client.post("/v1/jobs", json={**DRAWN, "inspect": inspect}), 422, "invalid_request", word)
    assert problem["argument"] == argument


def test_a_diagnosis_is_a_job_of_its_own(api):
    answer = api.client.post("/v1/diagnose", json={**DRAWN, "only": "nan", "label": "why"}, headers=NOW)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["label"], job["links"].get("diagnosis")) == ("diagnosis", "why", None)
    assert answer.headers["location"] == job["links"]["self"]
    assert job["request"]["only"] == ["nan"]
    assert job["request"]["request"]["prompt"] == DRAWN["prompt"]
    assert job["finish_in_s"] > 0


def test_the_request_of_a_job_is_diagnosed_with_its_pictures(api):
    kind = {"Content-Type": "image/png"}
    upload = api.client.post("/v1/artifacts", content=picture_bytes(), headers=kind).json()
    subject = api.submit(image={"artifact": upload["sha256"]}, strength=0.5, inspect={"activations": True})
    (claim,) = api.claim()
    api.fail(claim, Failure(code=FailureCode.NON_FINITE, detail="black"))
    answer = api.client.post(f"/v1/jobs/{subject['id']}/diagnosis", json={"only": ["nan"]}, headers=NOW).json()
    assert (answer["request"]["subject"], answer["inspect"]) == (subject["id"], None)
    assert answer["request"]["request"] == subject["request"]
    assert api.store._database.read(lambda connection: uses_of(connection, answer["id"])) == [upload["sha256"]]
    again = api.client.post(f"/v1/jobs/{answer['id']}/diagnosis", headers=NOW)
    is_problem(again, 422, "invalid_request", "job is a job of diagnosis, expected one that draws pictures")


def uses_of(connection, job):
    from sqlalchemy import select

    from undertow.serving.store.tables import uses

    return list(connection.execute(select(uses.c.sha256).where(uses.c.job == job)).scalars())


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v1/diagnose", {**DRAWN, "only": 3}, "a list of at most 100 names of rules"),
        ("/v1/diagnose", {**DRAWN, "only": [1]}, "only"),
        ("/v1/diagnose", {**DRAWN, "step": 3}, "'steps'"),
        ("/v1/diagnose", {**DRAWN, "inspect": {"profile": True}}, "draws no picture"),
        ("/v1/jobs/{job}/diagnosis", {"prompt": "owl"}, "it has only"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(api, path, body, word):
    job = api.submit()["id"]
    is_problem(api.client.post(path.format(job=job), json=body, headers=NOW), 422, "invalid_request", word)
    assert len(api.store.jobs()) == 1
