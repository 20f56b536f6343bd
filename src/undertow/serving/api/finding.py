"""Jobs and artifacts of a key: what belongs to others does not exist."""

from undertow.serving.api.auth import owner
from undertow.serving.api.parts import Parts
from undertow.serving.jobs import Job
from undertow.serving.store.records import ApiKey, JobNotFound

LONGEST_NAME = 200
"""Of ids that clients give; longer ones are none of ours."""


def find_job(service: Parts, name: str, key: ApiKey) -> Job:
    """By its id, or by the name that this key gave it. Errors: `JobNotFound`, also for a job of another key."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise JobNotFound(name[:LONGEST_NAME])
    try:
        return service.store.job(name, key.id)
    except JobNotFound:
        if owner(key) is None:
            return service.store.job(name)
        raise
