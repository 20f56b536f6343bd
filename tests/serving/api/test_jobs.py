"""Jobs over HTTP: accepted once, followed, listed, canceled."""

import threading
import time

import pytest

from tests.embedded import SIDE
from tests.serving.api.stand_in import DRAWN, is_problem
from undertow.serving.failures import FAULTS, Failure, FailureCode


def test_a_job_is_accepted_drawn_and_fetched(api):
    answer = api.client.post("/v1/jobs", json={**DRAWN, "seed": 7, "label": "mine", "count": 2})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["state"], job["model"], job["label"], job["pictures"]) == ("queued", "emoji", "mine", [])
    api.work()
    done = api.client.get(answer.headers["location"]).json()
    assert done["state"] == "succeeded"
    assert (done["progress"]["step"], done["progress"]["pictures"]) == (done["progress"]["steps"], 2)
    assert [picture["seed"] for picture in done["pictures"]] == [7, 8]
    assert done["request"]["seed"] == 7
    assert done["report"] == {"drawn by": "stand-in"}
    assert done["expires_at"] > done["finished_at"]
    for picture in done["pictures"]:
        content = api.client.get(picture["url"])
        assert content.headers["content-type"] == picture["media_type"] == "image/png"
        assert len(content.content) == picture["bytes"]


def test_what_was_left_open_is_decided_and_told(api):
    """Two jobs without a seed are two pictures, and either can be drawn again."""
    first, second = api.submit(), api.submit()
    assert first["request"]["seed"] != second["request"]["seed"]
    assert first["request"]["size"] == [SIDE, SIDE]
    assert first["mode"] == "reproducible"


def test_a_request_shows_the_steps_of_its_sigmas(api):
    job = api.submit(sigmas=[9.0, 4.0, 1.0, 0.0])
    assert job["request"]["steps"] == 3
    api.work()
    done = api.client.get(job["links"]["self"]).json()
    assert done["request"]["steps"] == done["progress"]["steps"] == 3
    planned = api.client.post("/v1/plan", json={**DRAWN, "sigmas": [9.0, 1.0, 0.0]}).json()
    assert planned["request"]["steps"] == 2


def test_the_same_request_again_is_served_from_the_pictures(api):
    """The second job is done at once, says so, and has the same pictures; `reuse: false` draws again."""
    api.submit(seed=1)
    api.work()
    answer = api.client.post("/v1/jobs", json={**DRAWN, "seed": 1})
    assert answer.status_code == 201
    assert answer.json()["reused"] is True
    assert answer.json()["state"] == "succeeded"
    again = api.client.post("/v1/jobs", json={**DRAWN, "seed": 1, "reuse": False})
    assert (again.status_code, again.json()["reused"]) == (202, False)


@pytest.mark.parametrize("known", [False, True])
def test_prefer_wait_answers_with_the_finished_job(api, known):
    headers = {"Prefer": "wait=200", "Idempotency-Key": "once"}

    def work() -> None:
        time.sleep(0.2)
        while not api.work():  # on a busy machine the job may come later
            time.sleep(0.01)

    if known:
        api.client.post("/v1/jobs", json=DRAWN, headers={"Idempotency-Key": "once"})
    worker = threading.Thread(target=work)
    worker.start()
    start = time.monotonic()
    answer = api.client.post("/v1/jobs", json=DRAWN, headers=headers)
    worker.join()
    assert answer.status_code == (200 if known else 201)
    assert answer.json()["state"] == "succeeded"
    assert answer.headers["preference-applied"] == "wait=200"
    assert time.monotonic() - start < 100  # it was woken, and did not wait for its time to be over


def test_prefer_wait_answers_with_202_when_the_time_is_over(api):
    answer = api.client.post("/v1/jobs", json=DRAWN, headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


def test_an_idempotency_key_is_one_job(api):
    """However the same body is written; and whatever was chosen for it, such as the seed."""
    first = api.client.post("/v1/jobs", json=DRAWN, headers={"Idempotency-Key": "a b"})
    spaced = b'{ "steps": 2,\n "prompt": "red apple" }'
    second = api.client.post(
        "/v1/jobs", content=spaced, headers={"Idempotency-Key": "a b", "Content-Type": "application/json"}
    )
    assert second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert len(api.client.get("/v1/jobs").json()["jobs"]) == 1
    other = api.client.post("/v1/jobs", json={**DRAWN, "steps": 3}, headers={"Idempotency-Key": "a b"})
    problem = is_problem(other, 422, "idempotency_conflict", "'a b'", "take a new key")
    assert problem["job"] == first.json()["id"]


def test_a_retry_is_the_same_job_whatever_would_refuse_a_new_one(make_api):
    """As the order of checks has it: a new job is counted before it is looked at whether it fits."""
    api = make_api(budget_bytes=700 * 2**20, queue_limit=3)
    mine = api.key("mine", requests_per_minute=3)
    body = {**DRAWN, "deadline_s": 60.0}
    first = api.client.put("/v1/jobs/apple", json=body, headers=mine).json()["id"]
    once = {**mine, "Idempotency-Key": "once"}
    second = api.client.post("/v1/jobs", json=DRAWN, headers=once).json()["id"]
    large = api.client.post("/v1/jobs", json={**DRAWN, "size": 2048}, headers=mine)
    is_problem(large, 422, "exceeds_capacity", "2048x2048")
    refused = api.client.post("/v1/jobs", json={**DRAWN, "size": 2048}, headers=mine)
    is_problem(refused, 429, "rate_limited", "3 times a minute")
    is_problem(api.client.post("/v1/jobs", json={**DRAWN, "steps": 0}, headers=mine), 422, "invalid_request")
    levels = {**DRAWN, "model": "emoji-turbo", "steps": 51}
    answer = api.client.post("/v1/jobs", json=levels, headers=mine)
    is_problem(answer, 422, "invalid_request", "steps is 51", "from 1 to 50")
    api.clock.ahead = 61.0  # the deadline could not be kept now
    for _ in range(2):
        assert api.client.put("/v1/jobs/apple", json=body, headers=mine).json()["id"] == first
        assert api.client.post("/v1/jobs", json=DRAWN, headers=once).json()["id"] == second
    other = api.client.post("/v1/jobs", json={**DRAWN, "steps": 3}, headers=once)
    is_problem(other, 422, "idempotency_conflict", "take a new key")


def test_a_batch_that_is_sent_again_is_the_same_and_counted_once(api):
    mine = {**api.key("mine", requests_per_minute=1), "Idempotency-Key": "once"}
    body = {"jobs": [{**DRAWN, "seed": 1}, {**DRAWN, "seed": 2}]}
    first, again = (api.client.post("/v1/batches", json=body, headers=mine) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert [job["id"] for job in again.json()["jobs"]] == [job["id"] for job in first.json()["jobs"]]
    longer = api.client.post("/v1/batches", json={"jobs": [*body["jobs"], DRAWN]}, headers=mine)
    is_problem(longer, 422, "idempotency_conflict", "take a new key")


@pytest.mark.parametrize("told", [False, True])
def test_prompts_are_in_the_log_only_where_the_operator_wants_them(make_api, caplog, told):
    api = make_api(log_prompts=told)
    with caplog.at_level("INFO"):
        job = api.submit()
    (line,) = [one for one in caplog.messages if job["id"] in one]
    assert ("red apple" in line) is told
    assert any("red apple" in one for one in caplog.messages) is told


@pytest.mark.parametrize("before", ["unknown", "job_1", "job_" + "I" * 26, "job_" + "0" * 25 + "\n"])
def test_a_page_begins_at_a_job(api, before):
    job = api.submit()["id"]
    answer = api.client.get("/v1/jobs", params={"before": before})
    is_problem(answer, 422, "invalid_request", "before is", "the id of a job", "follow `next`")
    gone = "job_" + "Z" * 26  # of a job that has expired since
    assert [one["id"] for one in api.client.get("/v1/jobs", params={"before": gone}).json()["jobs"]] == [job]


@pytest.mark.parametrize("key", ["k" * 256, "", "a\tb"])
def test_an_idempotency_key_that_cannot_be_kept_is_refused(api, key):
    is_problem(api.client.post("/v1/jobs", json=DRAWN, headers={"Idempotency-Key": key}), 422, "invalid_request")
    assert api.store.jobs() == []


def test_a_name_of_the_client_is_one_job(api):
    first = api.client.put("/v1/jobs/apple-1", json=DRAWN)
    assert first.status_code == 202
    again = api.client.put("/v1/jobs/apple-1", json=DRAWN)
    assert again.json()["id"] == first.json()["id"]
    assert api.client.get("/v1/jobs/apple-1").json()["client_id"] == "apple-1"
    problem = is_problem(
        api.client.put("/v1/jobs/apple-1", json={**DRAWN, "prompt": "plum"}), 409, "client_id_conflict", "'apple-1'"
    )
    assert problem["job"] == first.json()["id"]
    api.work()
    assert api.client.put("/v1/jobs/apple-1", json=DRAWN).status_code == 200


@pytest.mark.parametrize("name", ["job_1", "-x", "a b", "x" * 129, "é"])
def test_a_name_that_cannot_be_one_is_refused(api, name):
    is_problem(api.client.put(f"/v1/jobs/{name}", json=DRAWN), 422, "invalid_request", "client_id")


def test_jobs_are_listed_by_page_state_label_and_batch(api):
    ids = [api.submit(seed=seed, label="even" if seed % 2 == 0 else "odd")["id"] for seed in range(5)]
    api.work(most=2)
    page = api.client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == ids[:2:-1]
    rest = api.client.get(page["next"]).json()
    assert [job["id"] for job in rest["jobs"]] == [ids[2], ids[1]]
    last = api.client.get(rest["next"]).json()
    assert ([job["id"] for job in last["jobs"]], last["next"]) == ([ids[0]], None)
    waiting = api.client.get("/v1/jobs?state=queued&state=running").json()["jobs"]
    assert {job["state"] for job in waiting} == {"queued"}
    assert len(waiting) == 3
    assert len(api.client.get("/v1/jobs?label=odd").json()["jobs"]) == 2


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("stat=queued", "'state'"),
        ("state=quued", "queued"),
        ("limit=0", "1 to 200"),
        ("limit=x", "1 to 200"),
        ("limit=1&limit=2", "once"),
        ("label=" + "x" * 2000, "1024"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(api, query, word):
    is_problem(api.client.get(f"/v1/jobs?{query}"), 422, "invalid_request", word)


@pytest.mark.parametrize("method", ["post", "delete"])
def test_a_waiting_job_is_canceled_at_once(api, method):
    job = api.submit()
    path = f"/v1/jobs/{job['id']}" + ("/cancel" if method == "post" else "")
    answer = getattr(api.client, method)(path)
    assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
    assert api.claim() == []
    assert getattr(api.client, method)(path).json()["state"] == "canceled"


def test_a_running_job_is_asked_to_stop(api):
    job = api.submit()
    api.claim()
    answer = api.client.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert (answer["state"], answer["cancel_requested"]) == ("running", True)


@pytest.mark.parametrize("code", FailureCode)
def test_a_failure_says_whose_fault_it_is_and_what_helps(api, code):
    job = api.submit()
    (claim,) = api.claim()
    api.fail(claim, Failure(code=code, detail="it went wrong; do this", origin="picture 0, step 3"))
    failure = api.client.get(f"/v1/jobs/{job['id']}").json()["failure"]
    assert failure["code"] == code
    assert failure["fault"] == FAULTS[code]
    assert failure["may_retry"] == (FAULTS[code] == "transient")
    assert failure["remedy"]
    assert failure["origin"] == "picture 0, step 3"


def test_a_batch_is_accepted_as_a_whole(api):
    answer = api.client.post("/v1/batches", json={"jobs": [{**DRAWN, "seed": seed} for seed in range(3)]})
    assert answer.status_code == 202
    batch = answer.json()
    assert answer.headers["location"] == f"/v1/batches/{batch['id']}"
    assert [job["request"]["seed"] for job in batch["jobs"]] == [0, 1, 2]
    assert {job["batch"] for job in batch["jobs"]} == {batch["id"]}
    api.work()
    shown = api.client.get(answer.headers["location"]).json()
    assert [job["request"]["seed"] for job in shown["jobs"]] == [0, 1, 2]
    assert {job["state"] for job in shown["jobs"]} == {"succeeded"}
    is_problem(api.client.get("/v1/batches/batch_none"), 404, "batch_not_found")


def test_a_batch_with_one_wrong_job_leaves_nothing(api):
    jobs = [DRAWN, {**DRAWN, "steps": 0}]
    is_problem(api.client.post("/v1/batches", json={"jobs": jobs}), 422, "invalid_request", "jobs.1.steps")
    assert api.store.jobs() == []


def test_a_batch_that_has_no_room_leaves_nothing(make_api):
    api = make_api(queue_limit=2)
    answer = api.client.post("/v1/batches", json={"jobs": [{**DRAWN, "seed": seed} for seed in range(3)]})
    is_problem(answer, 429, "queue_full")
    assert api.store.jobs() == []


def test_a_batch_sent_twice_is_one(api):
    body, headers = {"jobs": [DRAWN, DRAWN]}, {"Idempotency-Key": "once"}
    first = api.client.post("/v1/batches", json=body, headers=headers)
    again = api.client.post("/v1/batches", json=body, headers=headers)
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]
    assert len(api.store.jobs()) == 2


@pytest.mark.parametrize("body", [{}, {"jobs": []}, {"jobs": {}}, {"jobs": [1]}, {"jobs": [DRAWN], "label": "x"}])
def test_a_batch_that_is_none_is_refused(api, body):
    is_problem(api.client.post("/v1/batches", json=body), 422, "invalid_request")


def test_a_full_queue_says_when_to_come_again(make_api):
    api = make_api(queue_limit=1)
    api.submit()
    answer = api.client.post("/v1/jobs", json=DRAWN)
    problem = is_problem(answer, 429, "queue_full", "1")
    assert problem["may_retry"] is True
    assert int(answer.headers["retry-after"]) >= 1
    api.work()
    api.submit(seed=3)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"step": 3}, "'steps'"),
        ({"num_inference_steps": 3}, "'steps'"),
        ({"steps": 100_000}, "at most 200"),
        ({"count": 17}, "at most 16"),
        ({"size": [64, 63]}, "size"),
        ({"size": [2**20, 2**20]}, "pixels"),
        ({"model": "emojy"}, "'emoji'"),
        ({"model": "/etc/passwd"}, "a model of this service"),
        ({"adapters": ["mosaik"]}, "'mosaic'"),
        ({"adapters": ["../../etc/passwd"]}, "an adapter of this service"),
        ({"adapters": [{"source": "mosaic", "scal": 1}]}, "'scale'"),
        ({"image": "/etc/passwd"}, "base64"),
        ({"image": {"file": "/etc/passwd"}}, "no paths"),
        ({"image": "https://example.org/a.png"}, "base64"),
        ({"image": {"artifact": "0" * 64}}, "upload it again"),
        ({"label": "x" * 1025}, "1,024"),
        ({"label": "é" * 600}, "1,024"),
        ({"priority": 11}, "10"),
        ({"mode": "slow"}, "fast"),
        ({"format": "gif"}, "png"),
        ({"webhook": "https://example.org"}, "webhooks"),
        ({"seed": -1}, "seed"),
        ({"prompt": None}, "prompt"),
        (
            {"prompt": "x" * 20_000},
            "bytes; shorten it, or whoever runs this service can raise it (UNDERTOW_MAX_PROMPT_BYTES)",
        ),
        ({"sampler": "eulr"}, "euler"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(api, more, word):
    problem = is_problem(api.client.post("/v1/jobs", json={**DRAWN, **more}), 422, "invalid_request", word)
    assert problem["fault"] == "request"
    assert api.store.jobs() == []


def test_a_client_is_not_told_to_set_a_variable(api):
    """In no member of the answer, and in no form of another's API."""
    for path in ("/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/generations"):
        said = api.client.post(path, json={"prompt": "x" * 20_000})
        assert said.status_code in (400, 422)
        assert "can raise it (UNDERTOW_MAX_PROMPT_BYTES)" in said.text
        assert "set UNDERTOW" not in said.text, path


def test_an_accepted_job_says_when_it_will_be_done(api):
    job = api.submit()
    assert job["finish_at"] >= job["submitted_at"]
    assert job["finish_in_s"] == pytest.approx(job["finish_at"] - api.clock(), abs=1.0)
    later = api.submit(steps=100)
    assert later["finish_at"] > job["finish_at"]


def test_a_deadline_that_cannot_be_met_is_refused_with_the_number(api):
    answer = api.client.post("/v1/jobs", json={**DRAWN, "steps": 200, "count": 16, "deadline_s": 0.001})
    problem = is_problem(answer, 422, "deadline_unreachable", "deadline")
    assert problem["numbers"]["finish_s"] > 0.001
    assert api.submit(deadline_s=1e6)["deadline_at"] > api.clock()


def test_what_can_never_run_here_is_refused_with_what_would(make_api):
    """The numbers are those of the plan."""
    api = make_api(budget_bytes=600 * 2**20, max_pixels=2**30)
    answer = api.client.post("/v1/jobs", json={**DRAWN, "size": [8192, 8192]})
    numbers = is_problem(answer, 422, "exceeds_capacity", "8192x8192")["numbers"]
    assert numbers["needed_bytes"] > numbers["budget_bytes"] == 600 * 2**20
    plan = api.client.post("/v1/plan", json={**DRAWN, "size": [8192, 8192]}).json()
    assert (plan["accepted"], plan["memory"]["fits"]) == (False, False)
    assert plan["refused"]["numbers"] == numbers
