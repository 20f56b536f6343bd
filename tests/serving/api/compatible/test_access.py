"""Who may do what by the APIs of others: every route, asked by every kind of key."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.api.stand_in import Api
from undertow.serving.api.app import COMPATIBLE

SCOPES = {
    ("POST", "/v1/images/generations"): "submit",
    ("POST", "/v1/images/edits"): "submit",
    ("GET", "/v1/models/{name}"): "read",
    ("POST", "/models/{name:path}"): "submit",
    ("POST", "/"): "submit",
    ("POST", "/sdapi/v1/txt2img"): "submit",
    ("POST", "/sdapi/v1/img2img"): "submit",
    ("POST", "/sdapi/v1/interrupt"): "submit",
    ("POST", "/sdapi/v1/skip"): "submit",
    ("POST", "/sdapi/v1/png-info"): "read",
    ("POST", "/sdapi/v1/options"): "submit",
    ("POST", "/sdapi/v1/refresh-checkpoints"): "submit",
    ("POST", "/sdapi/v1/refresh-loras"): "submit",
    ("GET", "/sdapi/v1/progress"): "read",
    ("POST", "/internal/progress"): "read",
    ("GET", "/sdapi/v1/options"): "read",
    ("GET", "/sdapi/v1/{name}"): "read",
    ("POST", "/sdapi/v1/{name}"): "read",
    ("GET", "/controlnet/{name}"): "read",
}
"""By route, the scope that it needs."""

BY_TOOL = {("GET", "/mcp"), ("POST", "/mcp"), ("DELETE", "/mcp")}
"""Routes that want any key; each of their tools has a scope."""


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """An API, and the headers of keys of one scope each."""
    from tests.serving.api.stand_in import open_api, shared_catalog

    api = open_api(tmp_path_factory.mktemp("access") / "data", shared_catalog())
    yield {"api": api, "submit": api.key("submits", "submit"), "read": api.key("reads", "read")}
    api.close()


def ask(service: dict[str, Any], route: tuple[str, str], headers: dict[str, str]) -> Any:
    """The answer to a request that is refused for what it asks where it is not refused for its key."""
    api: Api = service["api"]
    method, path = route
    path = path.replace("{name:path}", "emoji").replace("{name}", "samplers")
    return api.client.request(method, path, headers=headers, **({"json": {"?": 1}} if method == "POST" else {}))


def test_every_route_has_a_line():
    found = {
        (method, getattr(route, "path", ""))
        for router in COMPATIBLE
        for route in router.routes
        for method in getattr(route, "methods", ())
    }
    assert found == SCOPES.keys() | BY_TOOL


@pytest.mark.parametrize("route", [*SCOPES, *sorted(BY_TOOL)], ids=" ".join)
def test_without_a_key_nothing_is_shown(service, route):
    for headers in ({}, {"Authorization": "Bearer ut_guessed"}, {"Authorization": "Basic bWU6dXRfZ3Vlc3NlZA=="}):
        answer = ask(service, route, headers)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"].startswith(("Bearer", "Basic"))


@pytest.mark.parametrize("route", SCOPES, ids=" ".join)
def test_a_key_of_another_scope_is_refused_and_one_of_the_scope_is_not(service, route):
    for scope in ("submit", "read"):
        answer = ask(service, route, service[scope])
        if scope == SCOPES[route]:
            assert answer.status_code in (200, 400, 404, 415, 422), answer.text
        else:
            assert answer.status_code == 403
            assert SCOPES[route] in answer.text
