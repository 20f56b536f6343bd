"""Why a job failed, in one taxonomy for every answer: whose fault it is, and what helps. No torch."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any, Literal

from undertow.errors import (
    AdapterMismatch,
    CheckpointError,
    InvalidInput,
    NonFiniteError,
    OutOfMemory,
    PromptError,
    RequestFailed,
    UndertowError,
)
from undertow.records import Record
from undertow.shortage import is_out_of_memory

Fault = Literal["request", "transient", "engine"]
"""request: the same request fails again. transient: trying again helps. engine: ours, please report it."""


class FailureCode(StrEnum):
    """What went wrong. A client branches on it; the sentence beside it is for people."""

    INVALID_REQUEST = "invalid_request"
    INVALID_PROMPT = "invalid_prompt"
    ADAPTER_MISMATCH = "adapter_mismatch"
    FILE_CHANGED = "file_changed"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    EXCEEDS_CAPACITY = "exceeds_capacity"
    DEADLINE_PASSED = "deadline_passed"
    POISON = "poison"
    STORAGE_FULL = "storage_full"
    UNREADABLE_FILE = "unreadable_file"
    UNUSABLE_ADAPTER = "unusable_adapter"
    INTERNAL = "internal"


FAULTS: dict[FailureCode, Fault] = {
    FailureCode.INVALID_REQUEST: "request",
    FailureCode.INVALID_PROMPT: "request",
    FailureCode.ADAPTER_MISMATCH: "request",
    FailureCode.FILE_CHANGED: "transient",
    FailureCode.NON_FINITE: "request",
    FailureCode.OUT_OF_MEMORY: "transient",
    FailureCode.EXCEEDS_CAPACITY: "request",
    FailureCode.DEADLINE_PASSED: "transient",
    FailureCode.POISON: "engine",
    FailureCode.STORAGE_FULL: "transient",
    FailureCode.UNREADABLE_FILE: "engine",
    FailureCode.UNUSABLE_ADAPTER: "request",
    FailureCode.INTERNAL: "engine",
}


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """detail: a sentence with value, expectation and remedy. origin: where in the job, such as "picture 0, step 3"."""

    code: FailureCode
    detail: str
    origin: str = ""

    @property
    def fault(self) -> Fault:
        return FAULTS[self.code]

    @property
    def may_retry(self) -> bool:
        """Whether the same request can succeed later."""
        return self.fault == "transient"


class Refused(UndertowError):
    """A job that is refused before it is accepted, or given back, with numbers that a client can act on. detail: the
    sentence. numbers: what a program needs to do better, such as the bytes that are needed, and the fields of a request
    that would fit."""

    def __init__(self, code: FailureCode, detail: str, numbers: Mapping[str, Any] | None = None):
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.numbers: dict[str, Any] = dict(numbers or {})


def failure_of(error: BaseException) -> Failure:
    """The failure that an error of the engine means. Anything unforeseen is the engine's fault, and says so."""
    if isinstance(error, Refused):
        return Failure(code=error.code, detail=error.detail)
    cause = error.__cause__ if isinstance(error, RequestFailed) and error.__cause__ is not None else error
    origin = str(error.origin) if isinstance(error, RequestFailed) else "; ".join(getattr(error, "__notes__", ()))
    detail = for_clients(without_paths(str(error), error)) or type(error).__name__
    return Failure(code=_code(error, cause), detail=detail, origin=without_paths(origin, error))


def without_paths(said: str, error: BaseException) -> str:
    """A sentence for clients: files by their names, never by where they lie. error: which it was said of."""
    for path in _paths_of(error):
        said = said.replace(path, PurePath(path).name)
    return _PATH.sub(lambda found: PurePath(found[0]).name, said)


def for_clients(said: str) -> str:
    """A sentence for those who cannot set a variable of the service: who can raise a limit."""
    return _RAISE.sub(r"whoever runs this service can raise it (\1)", said)


_RAISE = re.compile(r"set (UNDERTOW_MAX_\w+) higher if you trust it")
"""`Limit.remedy`."""

_PATH = re.compile(r"(?<![\w/:.~-])/(?!v1/|sdapi/)(?:[^\s/'\",;:()]+/)+[^\s/'\",;:()]+")
"""A path of this machine that no error carries by itself; routes of the API are none."""


def _paths_of(error: BaseException) -> Iterator[str]:
    """Of an error and of those that caused it, with a folder before the name."""
    at: BaseException | None = error
    while at is not None:
        for name in ("path", "filename", "filename2"):
            path = str(getattr(at, name, None) or "")
            if "/" in path.strip("/") or path.startswith("/"):
                yield path
        at = at.__cause__


def _code(error: BaseException, cause: BaseException) -> FailureCode:
    if isinstance(cause, OutOfMemory) or is_out_of_memory(cause) or is_out_of_memory(error):
        return FailureCode.OUT_OF_MEMORY
    for kind, code in (
        (PromptError, FailureCode.INVALID_PROMPT),
        (InvalidInput, FailureCode.INVALID_REQUEST),
        (NonFiniteError, FailureCode.NON_FINITE),
        (AdapterMismatch, FailureCode.ADAPTER_MISMATCH),
        (CheckpointError, FailureCode.UNREADABLE_FILE),
    ):
        if isinstance(cause, kind):
            return code
    if isinstance(cause, OSError) and cause.errno in (28, 122):  # ENOSPC, EDQUOT
        return FailureCode.STORAGE_FULL
    return FailureCode.INVALID_REQUEST if isinstance(cause, UndertowError) else FailureCode.INTERNAL
