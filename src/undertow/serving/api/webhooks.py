"""Telling a client's server that a job is done: signed, tried again with longer and longer pauses, and never sent into
the service's own network unless the operator allows that.

The body is the job as GET /v1/jobs/{id} shows it. `Undertow-Signature: t=SECONDS,v1=HEX` is HMAC-SHA256 of
"SECONDS.BODY" under the secret that the operator sets, so that a receiver knows who calls, and that it is no replay.
Deliveries are rows of the store: they outlive every process, and one that was sent twice has the same job id.
"""

import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx

from undertow.errors import InvalidInput
from undertow.serving.api.parts import Parts
from undertow.serving.api.views import job_view
from undertow.serving.store.records import Delivery, JobNotFound

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
PAUSES_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0)
"""After each failure; after the last the delivery is given up."""
IDLE_S = 1.0
LONGEST_URL = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host. Errors: `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def require_webhook(url: str, *, enabled: bool, private: bool) -> str:
    """A URL that may be called, as far as it says itself; its address is looked up at each delivery. private: whether
    this network's own addresses are allowed. Errors: `InvalidInput`."""
    if not enabled:
        raise InvalidInput("webhook", repr(url[:100]), "nothing", "the operator has not enabled them (--webhooks)")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as err:
        raise InvalidInput("webhook", repr(url[:100]), "a URL", str(err)) from err
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput("webhook", repr(url[:100]), "an http or https URL", "give the whole address")
    if len(url) > LONGEST_URL:
        raise InvalidInput("webhook", f"{len(url)} characters", f"at most {LONGEST_URL}", "shorten it")
    if parts.username or parts.password:
        raise InvalidInput("webhook", "a URL with a password", "one without", "check the signature instead")
    if not private and (host == "localhost" or (_address(host) is not None and not _is_public(host)) or port == 0):
        raise InvalidInput("webhook", repr(url[:100]), "an address outside of this network", _ALLOW)
    return url


_ALLOW = "the operator can allow others with --webhooks-to-private-addresses"


class Webhooks:
    """Delivers what the store says is due, in a thread of its own."""

    def __init__(self, service: Parts, *, resolve: Resolve = resolve, transport: httpx.BaseTransport | None = None):
        self._service, self._resolve = service, resolve
        self._client = httpx.Client(timeout=TIMEOUT_S, transport=transport, follow_redirects=False, trust_env=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="undertow-webhooks", daemon=True)

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def close(self) -> None:
        """Ends after the delivery that is on its way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT_S)
        self._client.close()

    def deliver_due(self) -> int:
        """Tries every delivery that is due once; how many there were."""
        due = self._service.store.deliveries.take()
        for delivery in due:
            self._deliver(delivery)
        return len(due)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                busy = self.deliver_due()
            except Exception as err:  # the store is away; what is due stays due
                logger.warning("webhooks wait: %s", err)
                busy = 0
            if not busy:
                self._stop.wait(IDLE_S)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            self._send(delivery)
        except JobNotFound:
            self._service.store.deliveries.done(delivery.job)
        except (httpx.HTTPError, OSError, InvalidInput, ValueError) as err:
            self._failed(delivery, str(err) or type(err).__name__)
        else:
            self._service.store.deliveries.done(delivery.job)
            self._service.metrics.webhooks.labels("delivered").inc()

    def _failed(self, delivery: Delivery, problem: str) -> None:
        last = delivery.attempt >= len(PAUSES_S)
        logger.warning("webhook of %s failed (%d times): %s", delivery.job, delivery.attempt + 1, problem)
        self._service.metrics.webhooks.labels("given_up" if last else "failed").inc()
        if last:
            self._service.store.deliveries.done(delivery.job)
        else:
            self._service.store.deliveries.retry(delivery.job, self._service.clock() + PAUSES_S[delivery.attempt])

    def _send(self, delivery: Delivery) -> None:
        job = self._service.store.job(delivery.job)
        now = self._service.clock()
        body = json.dumps(job_view(job, now).to_json()).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "undertow", "Undertow-Job": job.id}
        if (secret := self._service.settings.webhook_secret) is not None:
            headers["Undertow-Signature"] = signature(secret, body, int(now))
        url, host, name = self._pinned(delivery.url)
        extensions = {"sni_hostname": name} if url.scheme == "https" else {}
        answer = self._client.post(url, content=body, headers={**headers, "Host": host}, extensions=extensions)
        if not answer.is_success:
            raise ValueError(f"the receiver answered {answer.status_code}")

    def _pinned(self, given: str) -> tuple[httpx.URL, str, str]:
        """The URL with the address in place of the name, so that what was checked is what is called."""
        url = httpx.URL(given)
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = self._resolve(url.host, port)
        allowed = [one for one in addresses if self._service.settings.webhooks_private or _is_public(one)]
        if not allowed:
            raise InvalidInput("webhook", f"{url.host} at {', '.join(addresses)}", "an address outside", _ALLOW)
        return url.copy_with(host=allowed[0]), url.netloc.decode(), url.host


def signature(secret: str, body: bytes, at: int) -> str:
    """The header that a receiver checks. at: seconds since 1970."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _is_public(host: str) -> bool:
    found = _address(host)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found is not None and found.is_global and not found.is_multicast
