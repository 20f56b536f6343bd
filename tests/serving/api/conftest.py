"""An API over a real store in a folder of its own, and a worker that draws plain colors."""

import shutil
import tempfile
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
