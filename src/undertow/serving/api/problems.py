"""Every refusal as problem details (RFC 9457): a sentence for people, a code and whose fault it is for programs.

{"type": "/docs#job_not_found", "title": "No such job", "status": 404, "detail": "job is ..., expected ...",
 "instance": "/v1/jobs/x", "code": "job_not_found", "fault": "request", "may_retry": false}
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from undertow.errors import InvalidInput, PromptError, UndertowError
from undertow.lookup import did_you_mean
from undertow.serving.failures import FailureCode, Fault, Refused, for_clients
from undertow.serving.store.records import ArtifactNotFound, JobNotFound, StoreError

MEDIA_TYPE = "application/problem+json"
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of refusal: its status, its title and whose fault it is."""

    status: int
    title: str
    fault: Fault = "request"


KINDS: Mapping[str, Kind] = {
    "malformed": Kind(status=400, title="The request cannot be read"),
    "unauthenticated": Kind(status=401, title="A key is needed"),
    "forbidden": Kind(status=403, title="The key does not allow this"),
    "not_found": Kind(status=404, title="There is nothing here"),
    "job_not_found": Kind(status=404, title="No such job"),
    "batch_not_found": Kind(status=404, title="No such batch"),
    "artifact_not_found": Kind(status=404, title="No such artifact"),
    "preview_not_found": Kind(status=404, title="No preview yet", fault="transient"),
    "method_not_allowed": Kind(status=405, title="Another method is needed"),
    "client_id_conflict": Kind(status=409, title="The name is taken by another job"),
    "job_not_waiting": Kind(status=409, title="The job waits no longer"),
    "job_canceled": Kind(status=409, title="The job was canceled"),
    "too_large": Kind(status=413, title="The body is too large"),
    "unsupported_media_type": Kind(status=415, title="Another content type is needed"),
    "invalid_request": Kind(status=422, title="A value cannot be used"),
    "invalid_prompt": Kind(status=422, title="The prompt cannot be read"),
    "adapter_mismatch": Kind(status=422, title="The adapter does not fit the model"),
    "unreadable_file": Kind(status=422, title="A file cannot be used"),
    "unusable_adapter": Kind(status=422, title="The adapter's file cannot be used"),
    "adapter_not_uploaded": Kind(status=409, title="The adapter did not come over HTTP"),
    "idempotency_conflict": Kind(status=422, title="The idempotency key was used for another request"),
    "non_finite": Kind(status=422, title="Values became infinite while drawing"),
    "exceeds_capacity": Kind(status=422, title="This can never run here"),
    "deadline_unreachable": Kind(status=422, title="The deadline cannot be met"),
    "headers_too_large": Kind(status=431, title="The headers are too large"),
    "rate_limited": Kind(status=429, title="Too many requests", fault="transient"),
    "queue_full": Kind(status=429, title="The queue is full", fault="transient"),
    "internal": Kind(status=500, title="A fault of undertow", fault="engine"),
    "poison": Kind(status=500, title="The job ended every worker that drew it", fault="engine"),
    "file_changed": Kind(status=503, title="A file was replaced meanwhile", fault="transient"),
    "out_of_memory": Kind(status=503, title="Memory ran out", fault="transient"),
    "deadline_passed": Kind(status=503, title="The deadline passed", fault="transient"),
    "not_ready": Kind(status=503, title="Not ready", fault="transient"),
    "storage_full": Kind(status=503, title="No room to store it", fault="transient"),
}
"""By code. A client branches on codes; they stay."""

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "A sentence: the value, what was expected, and what helps."},
        "instance": {"type": "string"},
        "code": {"type": "string", "enum": sorted(KINDS)},
        "fault": {"type": "string", "enum": ["request", "transient", "engine"]},
        "may_retry": {"type": "boolean", "description": "Whether the same request can succeed later."},
        "argument": {"type": "string", "description": "The field that was refused."},
        "expected": {"type": "string"},
        "remedy": {"type": "string"},
        "retry_after_s": {"type": "number"},
        "numbers": {"type": "object", "description": "What a program needs to ask for something that fits."},
        "incident": {"type": "string", "description": "Find it in the log of the service."},
    },
    "required": ["type", "title", "status", "detail", "instance", "code", "fault", "may_retry"],
}


class Problem(Exception):
    """A refusal on its way to the client. more: further members of the answer."""

    def __init__(self, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any):
        detail = for_clients(detail)
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.more: dict[str, Any] = {
            name: for_clients(one) if isinstance(one, str) else one for name, one in more.items()
        }
        self.headers = dict(headers or {})

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    @classmethod
    def of(cls, error: InvalidInput, code: str = "invalid_request") -> "Problem":
        """What a refused argument means here."""
        more: dict[str, Any] = {"argument": error.argument, "expected": error.expected, "remedy": error.remedy}
        return cls(code, str(error), **{name: value for name, value in more.items() if value})

    @classmethod
    def of_refused(cls, error: Refused) -> "Problem":
        """What cannot be drawn here, with the numbers. A deadline that is refused at once is the request's fault."""
        code = "deadline_unreachable" if error.code is FailureCode.DEADLINE_PASSED else error.code.value
        numbers = {"numbers": error.numbers} if error.numbers else {}
        return cls(code if code in KINDS else "invalid_request", error.detail, **numbers)

    def json(self, instance: str) -> dict[str, Any]:
        """The members of the answer. instance: the path that was asked for."""
        return {
            "type": f"/docs#{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "fault": self.kind.fault,
            "may_retry": self.kind.fault == "transient",
            **self.more,
        }

    def response(self, instance: str) -> Response:
        headers = dict(self.headers)
        if "retry_after_s" in self.more:
            headers["Retry-After"] = str(max(1, round(self.more["retry_after_s"])))
        return JSONResponse(self.json(instance), status_code=self.kind.status, headers=headers, media_type=MEDIA_TYPE)


def incident(error: Exception, instance: str) -> Problem:
    """A bug of ours: its traceback goes into the log under a number that the client is told."""
    number = secrets.token_hex(4)
    LOG.error("incident %s at %s", number, instance, exc_info=error)
    detail = f"undertow failed at this request; please report incident {number} with the log of the service"
    return Problem("internal", detail, incident=number)


def of_error(error: UndertowError, instance: str) -> Problem:
    """What an error of ours means to a client; one that no client can cause is an incident."""
    match error:
        case PromptError():
            return Problem.of(error, "invalid_prompt")
        case InvalidInput():
            return Problem.of(error)
        case Refused():
            return Problem.of_refused(error)
        case JobNotFound():
            return Problem("job_not_found", str(error))
        case ArtifactNotFound():
            return Problem("artifact_not_found", str(error))
        case StoreError() if error.may_retry:
            LOG.error("the store cannot be used: %s", error)
            code = "storage_full" if error.problem == "full" else "not_ready"
            return Problem(code, f"the store cannot be used now ({error.problem}); come back", retry_after_s=5.0)
        case _:
            return incident(error, instance)


def of_validation(errors: Sequence[Any]) -> Problem:
    """What the framework says of parameters."""
    first = errors[0] if errors else {"loc": ("request",), "msg": "cannot be read"}
    name = str(first["loc"][-1])
    return Problem("invalid_request", f"{name} cannot be used: {first['msg']}", argument=name)


def of_http(error: HTTPException, request: Request) -> Problem:
    """What the framework says of routes and methods, with what there is instead."""
    path, headers = request.url.path, dict(error.headers or {})
    match error.status_code:
        case 404:
            near = did_you_mean(path, request.app.openapi()["paths"])
            detail = f"path is {path!r}, expected one that /openapi.json lists"
            return Problem("not_found", f"{detail}; {near.strip()}" if near else detail)
        case 405:
            allowed = headers.get("Allow") or headers.get("allow", "")
            return Problem(
                "method_not_allowed", f"method is {request.method}, expected {allowed or 'another'}", headers=headers
            )
        case 401:
            return Problem("unauthenticated", str(error.detail), headers=headers)
        case _:
            return Problem("malformed", f"the request cannot be read: {error.detail}", headers=headers)
