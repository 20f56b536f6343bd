"""Jobs as tests submit them."""

from undertow.serving.jobs import JobResult, JobSpec, NewJob, StoredPicture


def a_job(prompt="apple", key="A", **fields) -> NewJob:
    return NewJob(key=key, spec=JobSpec(model="m", request={"prompt": prompt}), **fields)


def a_picture(sha256="a" * 64) -> StoredPicture:
    return StoredPicture(sha256=sha256, media_type="image/png", bytes=3, width=1, height=1, seed=0)


def a_result(*sha256: str) -> JobResult:
    return JobResult(pictures=tuple(map(a_picture, sha256 or ("a" * 64,))))


def everything(entries):
    """A schedule that takes all that waits."""
    return [one.id for one in entries]
