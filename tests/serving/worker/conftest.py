"""Places that share one catalog, and what was read of it."""

import pytest

from tests.serving.worker.places import adapter_files, open_place, tiny_settings
from undertow.serving.catalog.catalog import Catalog


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    return adapter_files(tmp_path_factory.mktemp("served-adapters"))


@pytest.fixture(scope="session")
def catalog(adapters):
    return Catalog(tiny_settings(adapters))


@pytest.fixture
def make_place(catalog, tmp_path):
    """Opens places, each in a folder of its own, by settings; `clock` is the store's."""
    made = []

    def make(**given):
        made.append(open_place(tmp_path / f"data-{len(made)}", catalog, **given))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture
def place(make_place):
    return make_place()
