"""Who may do what: every route, asked by every kind of key. A route without a line here is an error."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.api.stand_in import DRAWN, Api, is_problem, picture_bytes
from undertow.serving.api.app import ROUTERS
from undertow.serving.api.auth import Rates

OPEN = {("GET", "/health/live"), ("GET", "/health/ready")}
"""Routes for everybody."""

SCOPES = {
    ("POST", "/v1/jobs"): "submit",
    ("PUT", "/v1/jobs/{client_id}"): "submit",
    ("GET", "/v1/jobs"): "read",
    ("GET", "/v1/jobs/{job}"): "read",
    ("GET", "/v1/jobs/{job}/events"): "read",
    ("GET", "/v1/jobs/{job}/preview"): "read",
    ("POST", "/v1/jobs/{job}/cancel"): "submit",
    ("DELETE", "/v1/jobs/{job}"): "submit",
    ("PATCH", "/v1/jobs/{job}"): "submit",
    ("POST", "/v1/batches"): "submit",
    ("GET", "/v1/batches/{batch}"): "read",
    ("GET", "/v1/artifacts/{sha256}"): "read",
    ("HEAD", "/v1/artifacts/{sha256}"): "read",
    ("POST", "/v1/artifacts"): "submit",
    ("POST", "/v1/predict"): "submit",
    ("POST", "/v1/diagnose"): "inspect",
    ("POST", "/v1/jobs/{job}/diagnosis"): "inspect",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/adapters"): "read",
    ("PUT", "/v1/adapters/{name}"): "admin",
    ("DELETE", "/v1/adapters/{name}"): "admin",
    ("GET", "/v1/choices"): "read",
    ("POST", "/v1/plan"): "submit",
    ("GET", "/v1/workers"): "admin",
    ("GET", "/v1/state"): "read",
    ("GET", "/metrics"): "read",
}
"""By route, the scope that it needs."""

OWNED = [route for route in SCOPES if "{job}" in route[1] or "{batch}" in route[1] or "{sha256}" in route[1]]
"""Routes that show or change what belongs to a key."""


def routes() -> Iterator[tuple[str, str]]:
    for router in ROUTERS:
        for route in router.routes:
            for method in getattr(route, "methods", ()):
                yield method, getattr(route, "path", "")


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """Two keys with a finished job each, and keys of one scope."""
    from tests.serving.api.stand_in import open_api, shared_catalog

    api = open_api(tmp_path_factory.mktemp("access") / "data", shared_catalog())
    keys = {
        "ann": api.key("ann", "submit", "read", "inspect"),
        "bob": api.key("bob", "submit", "read", "inspect"),
        "submit": api.key("submits", "submit"),
        "read": api.key("reads", "read"),
        "inspect": api.key("inspects", "inspect"),
        "admin": api.key("operates", "admin"),
    }
    body = {"jobs": [{**DRAWN, "seed": 1}]}
    batch = api.client.post("/v1/batches", json=body, headers=keys["ann"]).json()
    api.work()
    job = api.client.get(f"/v1/jobs/{batch['jobs'][0]['id']}", headers=keys["ann"]).json()
    running = api.submit(keys["ann"], seed=2)
    api.claim()
    yield {"api": api, "keys": keys, "batch": batch["id"], "job": job, "running": running["id"]}
    api.close()


def ask(service: dict[str, Any], route: tuple[str, str], headers: dict[str, str]) -> Any:
    """The answer to a request that would be right for ann."""
    api: Api = service["api"]
    method, path = route
    job = service["running"] if path.endswith("preview") else service["job"]["id"]
    path = path.format(
        job=job, batch=service["batch"], sha256=service["job"]["pictures"][0]["sha256"], client_id="of-ann", name="mine"
    )
    more: dict[str, Any] = {}
    if path == "/v1/artifacts":
        more, headers = {"content": picture_bytes()}, {**headers, "Content-Type": "image/png"}
    elif method == "PATCH":
        more = {"json": {"priority": 0}}
    elif path.endswith("diagnosis"):
        headers = {**headers, "Prefer": "wait=0"}
    elif method in ("POST", "PUT"):
        headers = {**headers, "Prefer": "wait=0"}
        more = {"json": {"jobs": [DRAWN]} if path == "/v1/batches" else DRAWN}
    return api.client.request(method, path, headers=headers, **more)


def test_every_route_has_a_line():
    assert set(routes()) == SCOPES.keys() | OPEN


@pytest.mark.parametrize("route", SCOPES, ids=" ".join)
def test_without_a_key_nothing_is_shown(service, route):
    answer = ask(service, route, {})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    wrong = ask(service, route, {"Authorization": "Bearer ut_guessed"})
    assert wrong.status_code == 401


@pytest.mark.parametrize("route", SCOPES, ids=" ".join)
def test_a_key_of_another_scope_is_refused_and_one_of_the_scope_is_not(service, route):
    for scope in ("submit", "read", "inspect"):
        answer = ask(service, route, service["keys"][scope])
        if scope == SCOPES[route]:
            assert answer.status_code not in (401, 403), answer.text
        else:
            assert answer.status_code == 403
            if route[0] != "HEAD":
                is_problem(answer, 403, "forbidden", SCOPES[route])
    assert ask(service, route, service["keys"]["admin"]).status_code not in (401, 403)


@pytest.mark.parametrize("route", OWNED, ids=" ".join)
def test_what_belongs_to_another_key_is_not_there(service, route):
    foreign = ask(service, route, service["keys"]["bob"])
    assert foreign.status_code == 404
    mine = ask(service, route, service["keys"]["ann"])
    assert mine.status_code in (200, 202) or mine.json()["code"] == "preview_not_found"


@pytest.mark.parametrize("route", sorted(OPEN), ids=" ".join)
def test_health_is_for_everybody(service, route):
    assert ask(service, route, {}).status_code in (200, 503)


def test_lists_hold_only_what_is_the_key_s_own(service):
    api, keys = service["api"], service["keys"]
    for path in ("/v1/jobs", "/v1/state"):
        assert api.client.get(path, headers=keys["bob"]).json()["jobs"] == []
        assert api.client.get(path, headers=keys["ann"]).json()["jobs"]
        assert api.client.get(path, headers=keys["admin"]).json()["jobs"]


def test_a_foreign_artifact_cannot_be_drawn_from(service):
    api, keys = service["api"], service["keys"]
    body = {**DRAWN, "image": {"artifact": service["job"]["pictures"][0]["sha256"]}}
    is_problem(api.client.post("/v1/jobs", json=body, headers=keys["bob"]), 422, "invalid_request", "upload it")
    assert api.client.post("/v1/jobs", json=body, headers=keys["ann"]).status_code == 202


def test_the_same_names_and_keys_of_two_clients_do_not_meet(api):
    ann, bob = api.key("ann"), api.key("bob")
    once = {"Idempotency-Key": "1"}
    ids = {api.client.put("/v1/jobs/mine", json=DRAWN, headers=key).json()["id"] for key in (ann, bob)}
    ids |= {api.client.post("/v1/jobs", json=DRAWN, headers={**key, **once}).json()["id"] for key in (ann, bob)}
    assert len(ids) == 4


def test_pictures_of_another_key_are_not_reused(api):
    """Else a client could learn what others draw."""
    ann, bob = api.key("ann"), api.key("bob")
    api.submit(ann, seed=1)
    api.work()
    assert api.submit(bob, seed=1)["reused"] is False


def test_the_key_may_be_a_basic_password(api):
    secret = api.key("ann")["Authorization"].removeprefix("Bearer ")
    assert api.client.get("/v1/jobs", auth=("anybody", secret)).status_code == 200
    assert api.client.get("/v1/jobs", auth=("anybody", "wrong")).status_code == 401
    assert api.client.get("/v1/jobs", headers={"Authorization": "Basic !!!"}).status_code == 401


def test_a_revoked_key_is_refused(api, monkeypatch):
    monkeypatch.setattr("undertow.serving.api.auth.KNOWN_S", 0.0)
    headers = api.key("ann")
    api.key("bob")
    assert api.client.get("/v1/jobs", headers=headers).status_code == 200
    api.store.keys.revoke(api.keys["ann"])
    is_problem(api.client.get("/v1/jobs", headers=headers), 401, "unauthenticated", "revoked")


def test_revoking_the_last_key_opens_no_door(api, monkeypatch):
    monkeypatch.setattr("undertow.serving.api.auth.KNOWN_S", 0.0)
    headers = api.key("ann")
    api.store.keys.revoke(api.keys["ann"])
    is_problem(api.client.get("/v1/workers", headers=headers), 401, "unauthenticated", "revoked")
    is_problem(api.client.get("/v1/workers"), 401, "unauthenticated", "no key")


def test_without_keys_this_machine_may_do_everything_with_any_key(api):
    """OpenAI's clients always send one."""
    assert api.client.get("/v1/workers").status_code == 200
    assert api.client.get("/v1/workers", headers={"Authorization": "Bearer sk-nothing"}).status_code == 200
    api.key("first")
    assert api.client.get("/v1/workers").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Host": "localhost:8188"}, 200),
        ({"Host": "[::1]:8188"}, 200),
    ],
)
def test_without_keys_foreign_web_pages_are_refused(api, headers, status):
    """A page in a browser on this machine can send requests here; that nobody typed a key does not mean that it may."""
    assert api.client.get("/v1/jobs", headers=headers).status_code == status


def test_without_keys_a_public_address_answers_nobody(make_api):
    api = make_api(host="0.0.0.0")
    is_problem(api.client.get("/v1/jobs"), 401, "unauthenticated", "undertow keys add")


def test_a_key_may_submit_so_often(api):
    headers = api.key("ann", requests_per_minute=2)
    for seed in range(2):
        api.submit(headers, seed=seed)
    answer = api.client.post("/v1/jobs", json=DRAWN, headers=headers)
    problem = is_problem(answer, 429, "rate_limited", "2 times a minute")
    assert 0 < problem["retry_after_s"] <= 30
    assert int(answer.headers["retry-after"]) >= 1
    assert api.client.get("/v1/jobs", headers=headers).status_code == 200  # to look is free
    wrong = api.client.post("/v1/jobs", json={"prompt": 1}, headers=headers)
    is_problem(wrong, 422, "invalid_request")  # what is wrong is said first


def test_a_rate_fills_evenly():
    now = 0.0
    rates = Rates(lambda: now)
    assert [rates.wait_s("a", 2) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert rates.wait_s("b", 2) == 0.0
    now = 29.0
    assert rates.wait_s("a", 2) == pytest.approx(1.0)
    now = 30.0
    assert rates.wait_s("a", 2) == 0.0
    now = 10_000.0
    assert [rates.wait_s("a", 2) > 0 for _ in range(3)] == [False, False, True]


def test_a_key_may_have_so_many_that_wait(api):
    ann, bob = api.key("ann", max_queued=1), api.key("bob")
    api.submit(ann)
    is_problem(api.client.post("/v1/jobs", json=DRAWN, headers=ann), 429, "queue_full", "of this key")
    api.submit(bob)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"x" * 5000, {}, 401),
        (b"x" * 5000, {"key": "yes"}, 413),
        (b"{}", {"key": "yes"}, 415),
    ],
)
def test_the_key_is_looked_at_before_the_body(make_api, body, headers, status):
    api = make_api(max_body_bytes=1024)
    key = api.key("ann")
    chosen = key if headers else {}
    kind = {"Content-Type": "application/json"} if status == 413 else {}
    assert api.client.post("/v1/jobs", content=body, headers={**chosen, **kind}).status_code == status
