"""Webhooks: signed, repeated, and never into the service's own network."""

import hashlib
import hmac
import json
import time

import httpx
import pytest

from tests.serving.api.stand_in import Api, is_problem
from undertow.errors import InvalidInput
from undertow.serving.api.webhooks import PAUSES_S, Webhooks, require_webhook

URL = "https://hooks.example/done?a=1"
PUBLIC = "93.184.215.14"


class Receiver:
    """The other side: notes what comes, and answers as it is told."""

    def __init__(self, *statuses: int):
        self.statuses = list(statuses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self.statuses.pop(0) if self.statuses else 200)


@pytest.fixture
def api(make_api) -> Api:
    return make_api(webhooks=True, webhook_secret="shared")


def sender(api: Api, receiver: Receiver, *addresses: str) -> Webhooks:
    found = addresses or (PUBLIC,)
    return Webhooks(api.app.state.parts, resolve=lambda host, port: found, transport=httpx.MockTransport(receiver))


def test_the_receiver_is_told_once_and_can_check_who_calls(api):
    job = api.submit(webhook=URL)["id"]
    receiver = Receiver()
    hooks = sender(api, receiver)
    assert hooks.deliver_due() == 0
    api.work()
    assert hooks.deliver_due() == 1
    (request,) = receiver.requests
    body = json.loads(request.content)
    assert (body["id"], body["state"], len(body["pictures"])) == (job, "succeeded", 1)
    at, mac = (part.partition("=")[2] for part in request.headers["undertow-signature"].split(","))
    assert mac == hmac.new(b"shared", at.encode() + b"." + request.content, hashlib.sha256).hexdigest()
    # What was checked is what is called: the address, under the name that its certificate has.
    assert request.url.host == PUBLIC
    assert request.url.raw_path == b"/done?a=1"
    assert request.headers["host"] == "hooks.example"
    assert request.extensions["sni_hostname"] == "hooks.example"
    assert hooks.deliver_due() == 0


def test_a_receiver_that_is_away_is_called_again_later_and_later(api):
    api.submit(webhook=URL)
    api.work()
    receiver = Receiver(*[503] * (len(PAUSES_S) + 1))
    hooks = sender(api, receiver)
    for pause in PAUSES_S:
        assert hooks.deliver_due() == 1
        api.clock.ahead += pause - 1
        assert hooks.deliver_due() == 0
        api.clock.ahead += 2
    assert hooks.deliver_due() == 1
    api.clock.ahead += 1e6
    assert hooks.deliver_due() == 0  # given up
    assert len(receiver.requests) == len(PAUSES_S) + 1


def test_a_redirect_is_not_followed(api):
    api.submit(webhook=URL)
    api.work()
    receiver = Receiver(307)
    assert sender(api, receiver).deliver_due() == 1
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0"],
)
def test_a_name_that_leads_into_the_own_network_is_not_called(api, address):
    api.submit(webhook=URL)
    api.work()
    receiver = Receiver()
    assert sender(api, receiver, address).deliver_due() == 1
    assert receiver.requests == []


def test_of_several_addresses_a_public_one_is_called(api):
    api.submit(webhook=URL)
    api.work()
    receiver = Receiver()
    sender(api, receiver, "10.0.0.1", PUBLIC).deliver_due()
    assert receiver.requests[0].url.host == PUBLIC


def test_the_operator_may_allow_the_own_network(make_api):
    api = make_api(webhooks=True, webhook_secret="shared", webhooks_private=True)
    api.submit(webhook="http://10.0.0.1:8000/x")
    api.work()
    receiver = Receiver()
    sender(api, receiver, "10.0.0.1").deliver_due()
    assert str(receiver.requests[0].url) == "http://10.0.0.1:8000/x"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example",
        "file:///etc/passwd",
        "hooks.example",
        "http://",
        "http://localhost/x",
        "http://127.0.0.1:8188/v1/jobs",
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "http://user:password@hooks.example/",
        "http://hooks.example/a b",
        "http://hooks.example:99999/",
        "http://[",
    ],
)
def test_an_address_that_may_not_be_called_is_refused_at_once(api, url):
    is_problem(api.client.post("/v1/jobs", json={"prompt": "x", "webhook": url}), 422, "invalid_request", "webhook")


def test_they_are_off_unless_the_operator_wants_them():
    with pytest.raises(InvalidInput, match="--webhooks"):
        require_webhook(URL, enabled=False, private=False)


def test_they_run_beside_the_application(api, monkeypatch):
    """Started and ended with it; a store that is away ends no thread."""
    called = []
    monkeypatch.setattr("undertow.serving.api.webhooks.IDLE_S", 0.01)
    monkeypatch.setattr(Webhooks, "deliver_due", lambda self: called.append(1) or (1 / 0 if len(called) == 1 else 0))
    until = time.monotonic() + 10
    with api.client:
        while len(called) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(called) >= 3
