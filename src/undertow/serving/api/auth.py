"""Who asks, and what they may: a key as Bearer token or as the password of HTTP Basic, which A1111's clients speak.

As long as no key was ever made, a service that only this machine can reach takes everybody as "local". Web pages in a
browser on this machine are not everybody: a foreign `Host` or `Origin` is refused then.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer, SecurityScopes
from starlette.requests import Request

from undertow.lookup import in_seconds
from undertow.serving.api.problems import Problem
from undertow.serving.settings import LOOPBACK
from undertow.serving.store.records import ApiKey, Scope
from undertow.serving.store.store import Store

LOCAL = ApiKey(id="local", name="local", scopes=tuple(Scope), created_at=0.0)
"""Everybody, where no key was ever made."""

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="undertow"'}
KNOWN_S = 1.0
"""How long an answer about a key is believed: a revoked one is refused after it at the latest."""
REMEMBERED = 1024
"""Keys, and rates of keys."""

_bearer = HTTPBearer(auto_error=False, description="A key that `undertow keys add` printed.")
_basic = HTTPBasic(auto_error=False, description="The key as password; any user name.")


class Gate:
    """Finds the key of a request. One for each application."""

    def __init__(self, store: Store, *, public: bool, cors: tuple[str, ...] = ()):
        self._store, self._public, self._cors = store, public, cors
        self._rates = Rates()
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    def key_of(self, request: Request, secret: str | None) -> ApiKey:
        """Errors: `Problem` 401 for a secret that is none, 403 for a foreign web page where there are no keys."""
        found = None if secret is None else self._find(secret)
        if found is not None:
            return found
        if not self._public and not self._find_any():
            self._require_own_page(request)
            return LOCAL
        given = "no key" if secret is None else "a key that is unknown or revoked"
        raise Problem(
            "unauthenticated",
            f"the request has {given}, expected the header Authorization: Bearer KEY; "
            "the operator makes one with: undertow keys add NAME",
            headers=CHALLENGE,
        )

    def spend(self, key: ApiKey) -> None:
        """One request of a key. Errors: `Problem` 429."""
        if key.requests_per_minute is None:
            return
        wait = self._rates.wait_s(key.id, key.requests_per_minute)
        if wait > 0:
            raise Problem(
                "rate_limited",
                f"key {key.name!r} asked more than {key.requests_per_minute} times a minute; "
                f"come back in {in_seconds(wait)}",
                retry_after_s=wait,
            )

    def _find(self, secret: str) -> ApiKey | None:
        now = time.monotonic()
        with self._lock:
            at, key = self._known.get(secret, (-math.inf, None))
        if now - at < KNOWN_S:
            return key
        key = self._store.keys.find(secret)
        if key is not None:  # strangers must not fill the memory with guesses
            with self._lock:
                self._known[secret] = (now, key)
                self._known.move_to_end(secret)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return key

    def _find_any(self) -> bool:
        return bool(self._store.keys.list())  # a revoked one too: who revokes the last does not open the door

    def _require_own_page(self, request: Request) -> None:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if host not in LOOPBACK:
            raise Problem(
                "forbidden",
                f"Host is {host!r}, expected {' or '.join(LOOPBACK)} while there are no keys; "
                "make one with: undertow keys add NAME",
            )
        origin = request.headers.get("origin")
        if origin is None or origin in self._cors or "*" in self._cors:
            return
        if urlsplit(origin).netloc != request.headers.get("host"):
            raise Problem(
                "forbidden",
                f"Origin is {origin!r}, expected this service itself while there are no keys; "
                "allow the page with --cors, or make a key with: undertow keys add NAME",
            )


class Rates:
    """A bucket of requests for each key, which fills evenly and holds a minute's worth."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str, per_minute: int) -> float:
        """Takes one request out of the bucket; seconds until there is one when it is empty."""
        with self._lock:
            now = self._clock()
            at, left = self._left.get(key, (now, float(per_minute)))
            left = min(float(per_minute), left + (now - at) * per_minute / 60)
            taken = left >= 1
            self._left[key] = (now, left - taken)
            self._left.move_to_end(key)
            while len(self._left) > REMEMBERED:
                self._left.popitem(last=False)
            return 0.0 if taken else (1 - left) * 60 / per_minute


def _caller(
    wanted: SecurityScopes,
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    basic: Annotated[HTTPBasicCredentials | None, Depends(_basic)],
) -> ApiKey:
    """The key that asks. It runs before any body is read."""
    gate: Gate = request.app.state.parts.gate
    secret = bearer.credentials if bearer else basic.password if basic else None
    key = gate.key_of(request, secret)
    for scope in map(Scope, wanted.scopes):
        require_scope(key, scope)
    return key


def require_scope(key: ApiKey, scope: Scope) -> None:
    """Errors: `Problem` 403."""
    if not key.allows(scope):
        raise Problem(
            "forbidden",
            f"key {key.name!r} has the scopes {', '.join(key.scopes) or 'none'}, expected {scope}; "
            f"make one that has it with: undertow keys add NAME --scope {scope}",
        )


Known = Annotated[ApiKey, Security(_caller)]
"""The key of a route that looks at its scopes itself."""
Submitter = Annotated[ApiKey, Security(_caller, scopes=[Scope.SUBMIT])]
"""The key of a route that makes or changes jobs."""
Reader = Annotated[ApiKey, Security(_caller, scopes=[Scope.READ])]
"""The key of a route that shows what is the key's own, or everybody's."""
Inspector = Annotated[ApiKey, Security(_caller, scopes=[Scope.INSPECT])]
"""The key of a route that has the network looked into."""
Admin = Annotated[ApiKey, Security(_caller, scopes=[Scope.ADMIN])]
"""The key of a route that shows the service from inside."""


def owner(key: ApiKey) -> str | None:
    """Whose jobs a key sees: its own, or everybody's."""
    return None if key.allows(Scope.ADMIN) and key is not LOCAL else key.id


def headers_size(headers: Mapping[str, str]) -> int:
    """Bytes of all headers together."""
    return sum(len(name) + len(value) for name, value in headers.items())
