"""An API over a real store in a folder of its own, and a worker that draws plain colors."""

from collections.abc import Callable, Iterator

import pytest

from tests.serving.api.stand_in import Api, open_api, shared_catalog


@pytest.fixture
def make_api(tmp_path) -> Iterator[Callable[..., Api]]:
    """Makes APIs, each over a store of its own, by settings."""
    made: list[Api] = []

    def make(**settings) -> Api:
        made.append(open_api(tmp_path / f"data-{len(made)}", shared_catalog(), **settings))
        return made[-1]

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make_api) -> Api:
    """An API without keys, as on a laptop."""
    return make_api()
