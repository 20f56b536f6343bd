"""What clients send beside the request itself: headers, labels, and lists of jobs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.records import Record

LONGEST_WAIT_S = 600.0
"""Of `Prefer: wait`; a client that asks for longer waits so long, and asks again."""
LONGEST_KEY = 255
LABEL_BYTES = 1024
MOST_TOGETHER = 1000
"""Jobs of a batch."""

_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:-]{0,127}")
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])")


@dataclass(frozen=True, kw_only=True)
class JobChange(Record):
    """What can change of a job that waits."""

    called = "a change of a job"

    priority: Annotated[int, Ge(-10), Le(10)]
    """Among the jobs of the same key: higher goes first."""


def read_jobs(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The jobs of a batch. Errors: `InvalidInput`."""
    for name in given:
        if name != "jobs":
            raise InvalidInput(name[:100], "given", "a field of a batch", "it has jobs, a list of what /v1/jobs takes")
    jobs = given.get("jobs")
    if not isinstance(jobs, list) or not 0 < len(jobs) <= MOST_TOGETHER:
        found = f"{len(jobs):,} jobs" if isinstance(jobs, list) else shown(jobs)
        raise InvalidInput("jobs", found, f"a list of 1 to {MOST_TOGETHER:,}, each as /v1/jobs takes it")
    for index, one in enumerate(jobs):
        if not isinstance(one, dict):
            raise InvalidInput(f"jobs.{index}", shown(one), "an object as /v1/jobs takes it")
    return jobs


def require_label(wanted: Mapping[str, Any]) -> None:
    """Errors: `InvalidInput` for a label of more than 1 KiB."""
    label = wanted.get("label")
    count = len(label.encode()) if isinstance(label, str) else 0
    if count > LABEL_BYTES:
        raise InvalidInput("label", f"{count:,} bytes", f"at most {LABEL_BYTES:,}", "keep the rest on your side")


def require_client_id(name: str) -> None:
    """Errors: `InvalidInput` for a name that would be hard to put into a path, or could be an id of ours."""
    if not _CLIENT_ID.fullmatch(name) or name.startswith("job_"):
        expected = "1 to 128 letters, digits and . _ ~ : -, not beginning with job_"
        raise InvalidInput("client_id", repr(name[:140]), expected, "a UUID will do")


def require_idempotency_key(given: str | None) -> str | None:
    """Errors: `InvalidInput` for a header that is too long, or is no printable ASCII."""
    if given is None:
        return None
    if not (0 < len(given) <= LONGEST_KEY and given.isascii() and given.isprintable()):
        value = f"{len(given)} characters" if len(given) > LONGEST_KEY else repr(given)
        raise InvalidInput(
            "Idempotency-Key", value, f"1 to {LONGEST_KEY} printable characters of ASCII", "a UUID will do"
        )
    return given


def wait_of(prefer: str | None, otherwise_s: float = 0.0) -> float:
    """Seconds of `Prefer: wait=N`; other preferences may be ignored (RFC 7240). otherwise_s: where it is not said."""
    found = _WAIT.search(prefer) if prefer is not None else None
    return min(float(found[1]), LONGEST_WAIT_S) if found else otherwise_s
