"""Around every request: it is counted and traced, its headers have a bound, and what nobody foresaw becomes an
incident."""

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from undertow.serving.api.problems import Problem, incident
from undertow.serving.metrics import ApiMetrics
from undertow.serving.tracing import Answered, Tracing

HEADER_BYTES = 32 * 1024
PATH_BYTES = 8 * 1024


class Around:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, tracing: Tracing):
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        traceparent = Headers(scope=scope).get("traceparent")
        with self._tracing.request(scope["method"], scope["path"][:200], traceparent) as answered:
            await self._answer(scope, receive, send, answered)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answered: Answered) -> None:
        start, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                route = _route(scope)
                answered(route, status)
                self._metrics.requests.labels(route, str(status)).inc()
                self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)
            await send(message)

        try:
            if (problem := _too_large(scope)) is not None:
                await problem.response(scope["path"][:200])(scope, receive, counted)
                return
            await self._app(scope, receive, counted)
        except Exception as err:
            problem = incident(err, scope["path"][:200])
            if (
                not status
            ):  # else the answer has begun: its connection is closed, and the client sees that it ended early
                await problem.response(scope["path"])(scope, receive, counted)


def _route(scope: Scope) -> str:
    """The route as it is declared: paths themselves have no bound."""
    return getattr(scope.get("route"), "path", "") or "none"


def _too_large(scope: Scope) -> Problem | None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > HEADER_BYTES:
        return Problem("headers_too_large", f"the headers have {size:,} bytes, expected at most {HEADER_BYTES:,}")
    path = len(scope["raw_path"] or b"") + len(scope["query_string"]) if "raw_path" in scope else len(scope["path"])
    if path > PATH_BYTES:
        return Problem("headers_too_large", f"the path has {path:,} bytes, expected at most {PATH_BYTES:,}")
    return None
