"""Previews of running jobs are made while somebody watches."""

from undertow.serving.api.parts import Parts
from undertow.serving.jobs import Job
from undertow.serving.uploads import MEDIA_TYPES

WATCHED_S = 30.0
"""Previews are made for so long after somebody last asked."""


def want_previews(service: Parts, job: Job) -> None:
    """Lets the worker make previews for a while. Who watches asks at each step; it is written now and then."""
    now = service.clock()
    if not job.state.is_final and job.preview_until < now + WATCHED_S / 2:
        service.store.want_preview(job.id, now + WATCHED_S)


def sniffed(content: bytes) -> str:
    """The media type of a preview, by its first bytes."""
    if content.startswith(b"\xff\xd8"):
        return MEDIA_TYPES["JPEG"]
    return MEDIA_TYPES["WEBP"] if content[8:12] == b"WEBP" else MEDIA_TYPES["PNG"]
