"""The service itself over HTTP: models, adapters, plans, workers, metrics and health."""

import os

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.distilled import distilled_emoji, distilled_pipeline
from tests.embedded import SIDE
from tests.serving.api.stand_in import DRAWN, Api, is_problem, open_api
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.metrics import PREFIX, WorkerMetrics, size_class
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import StoreError, WorkerInfo


def hello(api: Api, **more) -> WorkerInfo:
    """A worker that is well, unless `more` says otherwise."""
    usual = {"device": "cpu", "pid": os.getpid(), "state": "idle", "models": ("emoji",)}
    return api.store.workers.hello(WorkerInfo(name="w", **{**usual, **more}))


def scraped(api: Api) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels, as Prometheus reads them."""
    text = api.client.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def test_models_are_listed_as_openai_s_clients_read_them(api):
    models = api.client.get("/v1/models").json()
    assert models["object"] == "list"
    emoji, turbo = models["data"]
    assert (emoji["id"], emoji["object"], emoji["default"], emoji["size"]) == ("emoji", "model", True, SIDE)
    assert emoji["suggested"] == {}
    assert (turbo["id"], turbo["default"], turbo["suggested"]["steps"]) == ("emoji-turbo", False, 4)
    assert emoji["quicker"] == "emoji-turbo"


def test_what_a_model_is_best_drawn_with_is_listed(tmp_path):
    quick, other = distilled_emoji(tmp_path / "turbo"), distilled_pipeline(tmp_path / "other")
    models = {"emoji": "emoji", "other": str(other), "turbo": str(quick)}
    api = open_api(tmp_path / "data", Catalog(ServerSettings(models=models)), models=models)
    listed = {one["id"]: (one["suggested"], one["quicker"]) for one in api.client.get("/v1/models").json()["data"]}
    few = {"steps": 4, "guidance_scale": 1.0}
    assert listed == {
        "emoji": ({}, "turbo"),
        "other": (few, None),
        "turbo": (few, None),
    }  # other knows none of its words
    drawn = api.client.post("/v1/jobs", json={"prompt": "red apple", "model": "turbo"}).json()
    assert (drawn["request"]["steps"], drawn["request"]["guidance_scale"]) == (4, 1.0)
    api.close()


def test_adapters_are_listed_by_the_names_that_requests_use(api):
    found = api.client.get("/v1/adapters").json()["adapters"]
    assert {one["name"] for one in found} >= {"mosaic", "edges"}
    for one in found:
        if one["kind"] == "LoRA":
            api.submit(adapters=[one["name"]])
    assert "/" not in str(found)
    is_problem(api.client.get("/v1/adapters?model=x"), 422, "invalid_request", "'x'")


def test_a_plan_says_what_a_job_would_be_and_keeps_nothing(api):
    plan = api.client.post("/v1/plan", json={**DRAWN, "seed": 3}).json()
    assert plan["model"] == "emoji"
    assert plan["request"]["seed"] == 3
    assert plan["work"]["steps"] == 2
    assert api.store.jobs() == []
    is_problem(api.client.post("/v1/plan", json={**DRAWN, "steps": 0}), 422, "invalid_request", "steps")


def test_the_state_counts_everybody_and_names_ones_own(api):
    ann, bob = api.key("ann"), api.key("bob")
    job = api.submit(bob)["id"]
    state = api.client.get("/v1/state", headers=ann).json()
    assert (state["queued"], state["running"], state["jobs"]) == (1, 0, [])
    assert [one["id"] for one in api.client.get("/v1/state", headers=bob).json()["jobs"]] == [job]


@pytest.mark.parametrize(
    ("more", "later_s", "reason"),
    [
        ({}, 0, None),
        ({"state": "busy", "last_step_at": None}, 0, None),
        ({"state": "starting"}, 0, "it is starting"),
        ({"models": ()}, 0, "no model"),
        ({"data": {"faults": {"emoji": "NaN in conv_in"}}}, 0, "emoji draws no pictures: NaN in conv_in"),
        ({"models": ("emoji", "other"), "data": {"faults": {"other": "NaN"}}}, 0, None),
        ({}, 60, "said nothing for 6"),
        ({}, 6, "said nothing for 6"),
        ({"state": "busy", "last_step_at": 1.0}, 0, "ended no step"),
        ({"state": "busy", "last_step_at": 1.0, "data": {"patience_s": 1e12}}, 0, None),
        (None, 0, "no worker has said hello"),
    ],
)
def test_readiness_tells_the_truth(api, more, later_s, reason):
    """A worker with a model that did something lately; a busy one that ends no step is not well (vllm-omni #5793)."""
    if more is not None:
        hello(api, **more)
    api.clock.ahead = later_s
    answer = api.client.get("/health/ready")
    assert answer.status_code == (200 if reason is None else 503)
    assert answer.json()["ready"] is (reason is None)
    assert reason is None or reason in " ".join(answer.json()["reasons"])
    assert api.client.get("/health/live").json() == {"live": True}
    problem = api.client.get("/v1/workers").json()["workers"]
    assert more is None or (problem[0]["problem"] is None) == (reason is None)
    api.submit()  # accepted all the same: the queue is durable


def test_a_store_that_cannot_be_written_is_not_ready(api, monkeypatch):
    def full() -> float:
        raise StoreError("undertow.db", "full", "the disk is full", "make room")

    hello(api)
    monkeypatch.setattr(api.store, "check", full)
    answer = api.client.get("/health/ready")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["the store cannot be written: full"])


def test_metrics_count_answers_jobs_and_refusals(api):
    api.submit()
    api.client.post("/v1/jobs", json={"prompt": 1})
    api.client.get("/v1/jobs/nothing")
    found = scraped(api)
    assert found["undertow_jobs_accepted_total", (("reused", "false"),)] == 1
    assert found["undertow_admission_rejected_total", (("reason", "invalid_request"),)] == 1
    assert found["undertow_jobs_now", (("state", "queued"),)] == 1
    assert found["undertow_queue_depth", (("model", "emoji"),)] == 1
    assert found["undertow_requests_total", (("code", "404"), ("route", "/v1/jobs/{job}"))] == 1
    assert found["undertow_requests_total", (("code", "202"), ("route", "/v1/jobs"))] == 1
    assert found["undertow_ready", ()] == 0


def test_metrics_of_workers_come_through_the_store(api):
    """Two processes, one text: samples of both under the label `worker`."""
    metrics = WorkerMetrics()
    metrics.images.labels("emoji").inc(3)
    metrics.step_seconds.labels("emoji", size_class(256), "2").observe(0.02)
    for name, device in (("a", "cpu"), ("b", "cuda:0")):
        api.store.workers.hello(
            WorkerInfo(name=name, device=device, pid=1, models=("emoji",), data={"metrics": metrics.snapshot()})
        )
    found = scraped(api)
    for worker in ("cpu.0", "cuda:0.1"):
        assert found["undertow_images_total", (("model", "emoji"), ("worker", worker))] == 3
    buckets = [key for key in found if key[0] == "undertow_step_seconds_bucket"]
    assert len(buckets) == 2 * 16
    assert "metrics" not in str(api.client.get("/v1/workers").json())


@pytest.mark.parametrize(("cells", "expected"), [(1, "1"), (2, "2"), (256, "256"), (257, "512"), (16384, "16384")])
def test_sizes_are_labels_of_few_values(cells, expected):
    assert size_class(cells) == expected


def test_no_label_has_values_without_bound(api):
    """Neither a path that a client made up, nor a prompt, a job, a key or an adapter."""
    job = api.submit(adapters=["mosaic"])["id"]
    api.client.get("/made/up")
    text = api.client.get("/metrics").text
    for word in ("/made/up", job, "mosaic", "local"):
        assert word not in text
    assert all(line.startswith(("#", PREFIX)) for line in text.splitlines())
