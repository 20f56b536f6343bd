"""APIs whose jobs are drawn, in plain colors, while their clients wait."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serving.api.stand_in import Api


@pytest.fixture
def drawing(api) -> "Iterator[Api]":
    """An API with a worker that draws at once whatever waits."""
    from undertow.serving.failures import Failure, FailureCode  # after checks of annotations

    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            for claim in api.claim():
                try:
                    api.publish(claim)
                except Exception as err:  # a client that waits would wait forever
                    api.fail(claim, Failure(code=FailureCode.INTERNAL, detail=repr(err)))

    worker = threading.Thread(target=work)
    worker.start()
    yield api
    stop.set()
    worker.join()
