"""An API over a real store in a folder of its own, and a worker that draws plain colors."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serving.api.stand_in import Api


@pytest.fixture
def make_api(memory_folder, sqlite_template) -> "Iterator[Callable[..., Api]]":
    """Makes APIs, each over a store of its own, by settings."""
    # Not above: what a conftest.py imports is imported before annotations are checked.
    from tests.serving.api.stand_in import open_api, shared_catalog

    made: list[Api] = []

    def make(**settings) -> "Api":
        folder = Path(tempfile.mkdtemp(dir=memory_folder))
        shutil.copy(sqlite_template, folder / "undertow.db")
        made.append(open_api(folder, shared_catalog(), **settings))
        return made[-1]

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make_api) -> "Api":
    """An API without keys, as on a laptop."""
    return make_api()


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
