"""What a client is told of a failure names files, never where they lie."""

import pytest

from undertow.errors import CorruptFile
from undertow.serving.failures import FailureCode, failure_of
from undertow.serving.worker.finishing import failure_in_job

PLACE = "/srv/my data/adapters/odd.safetensors"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CorruptFile(PLACE, "cut off"), "odd.safetensors: cut off"),
        (PermissionError(13, "Permission denied", PLACE), "[Errno 13] Permission denied: 'odd.safetensors'"),
        (RuntimeError("cannot open /srv/data/x.bin; see POST /v1/plan"), "cannot open x.bin; see POST /v1/plan"),
        (RuntimeError("see https://undertow.dev/a/b, and 3/4 of it"), "see https://undertow.dev/a/b, and 3/4 of it"),
    ],
)
def test_paths_become_names(error, said):
    assert failure_of(error).detail == said


def test_an_adapter_that_cannot_be_read_is_its_requests_fault_and_a_model_is_not():
    found = failure_in_job(CorruptFile(PLACE, "cut off"), {"": "hash", "odd": "hash"})
    assert (found.code, found.fault) == (FailureCode.UNUSABLE_ADAPTER, "request")
    found = failure_in_job(CorruptFile("/srv/model/unet.safetensors", "cut off"), {"": "hash", "odd": "hash"})
    assert (found.code, found.fault) == (FailureCode.UNREADABLE_FILE, "engine")
