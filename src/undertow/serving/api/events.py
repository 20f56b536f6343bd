"""What happens to a job, as server-sent events: a log that can be read again from any place, and then live.

Every event of the log has its number as id, so a client that reconnects with Last-Event-ID misses nothing. Between them
comes `status`, without an id and never repeated, when the time changed at which the job will be done.
"""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from undertow.serving.api.auth import Reader
from undertow.serving.api.finding import find_job
from undertow.serving.api.openapi import PROBLEMS
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.previews import sniffed, want_previews
from undertow.serving.api.problems import Problem
from undertow.serving.api.views import job_path
from undertow.serving.jobs import Job, JobEvent, JobState

KEEP_ALIVE_S = 15
"""Middle boxes cut connections that are silent for longer."""
AT_ONCE = 500
"""Events that are read together."""

EVENT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["event", "data"],
}

router = APIRouter()


@router.get(
    "/v1/jobs/{job}/events",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "Events until the job is final: accepted, started, progress, requeued and the final states, "
            "each with its number as id; and status, without one, when the finish time changed, and preview.",
            "content": {"text/event-stream": {"schema": EVENT}},
        },
        **PROBLEMS,
    },
    openapi_extra={
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "schema": {"type": "string"},
                "description": "The id of the last event that was seen; the log goes on behind it.",
            },
            {
                "name": "previews",
                "in": "query",
                "schema": {"type": "string", "enum": ["true", "false", "inline"]},
                "description": "Whether previews are made while somebody listens; status then names their path. "
                "inline: each comes as an event preview too, with media_type and base64.",
            },
        ]
    },
)
async def follow_job(job: str, request: Request, key: Reader, service: Service) -> EventSourceResponse:
    """Follow a job. The stream ends after the final event; a comment every 15 s keeps connections open."""
    after = _last_seen(request.headers.get("last-event-id"))
    given = request.query_params.get("previews")
    inline = given == "inline"
    previews = inline or _flag("previews", given)
    found = await run_in_threadpool(find_job, service, job, key)
    return EventSourceResponse(
        _stream(service, found, after, previews, inline),
        ping=KEEP_ALIVE_S,
        ping_message_factory=lambda: ServerSentEvent(comment="still here"),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _stream(service: Parts, job: Job, after: int, previews: bool, inline: bool) -> AsyncIterator[dict[str, Any]]:
    service.metrics.event_streams.inc()
    try:
        shown: dict[str, Any] = {}
        looked = 0
        while True:
            seen = service.watch.seen
            events, job = await run_in_threadpool(_read, service, job, after, previews)
            for event in events:
                after = event.seq
                yield _message(event)
                if event.kind in _FINAL:
                    return
            if job.state.is_final and not events:
                return
            if (now := _standing(job, previews)) != shown and not job.state.is_final:
                shown = now
                yield {"event": "status", "data": json.dumps(now)}
            if inline and (found := await run_in_threadpool(_preview, service, job, looked)) is not None:
                looked, preview = found
                yield {"event": "preview", "data": json.dumps(preview)}
            await service.watch.changed(seen, KEEP_ALIVE_S)
    finally:
        service.metrics.event_streams.dec()


_FINAL = frozenset(state.value for state in JobState if state.is_final)


def _read(service: Parts, job: Job, after: int, previews: bool) -> tuple[list[JobEvent], Job]:
    if previews:
        want_previews(service, job)
    return list(service.store.events(job.id, after=after, limit=AT_ONCE)), service.store.job(job.id)


def _preview(service: Parts, job: Job, looked: int) -> tuple[int, dict[str, str]] | None:
    """The newest preview and its time in nanoseconds, if there is one that is newer than `looked`."""
    place = service.artifacts.preview_path(job.id)
    try:
        made = place.stat().st_mtime_ns
        content = place.read_bytes() if made > looked else b""
    except FileNotFoundError:  # none yet, or the job is done
        return None
    if not content:
        return None
    return made, {"media_type": sniffed(content), "base64": b64encode(content).decode()}


def _message(event: JobEvent) -> dict[str, Any]:
    data = {"job": event.job, "at": event.at, **event.data}
    return {"id": str(event.seq), "event": event.kind, "data": json.dumps(data)}


def _standing(job: Job, previews: bool) -> dict[str, Any]:
    """What the log does not tell, as far as it is worth telling when it changes."""
    finish_at = None if job.finish_at is None else round(job.finish_at, 1)
    standing = {"state": job.state, "finish_at": finish_at, "cancel_requested": job.cancel_requested}
    return {**standing, "preview": f"{job_path(job.id)}/preview"} if previews else standing


def _last_seen(given: str | None) -> int:
    """Errors: `Problem` for what is no id of ours."""
    if given is None or not given.strip():
        return 0
    if not (given.isascii() and given.isdecimal() and len(given) < 19):
        raise Problem(
            "invalid_request", f"Last-Event-ID is {given[:100]!r}, expected the id of an event: a whole number"
        )
    return int(given)


def _flag(name: str, given: str | None) -> bool:
    if given is None or given.lower() in ("0", "false", "no"):
        return False
    if given.lower() in ("", "1", "true", "yes"):
        return True
    raise Problem("invalid_request", f"{name} is {given[:100]!r}, expected true, false or inline")
