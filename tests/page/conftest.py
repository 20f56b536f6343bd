"""Headless Chromium, and a service whose page it opens."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.page.site import Site
    from tests.page.visit import Visit

LIMIT_S = 1200
"""Of a test, with whatever it is the first to import."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="module")  # while it is open a loop of events runs in this thread, which others cannot bear
def browser() -> "Iterator[Browser]":
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        # Root has no sandbox of its own; the tests open nothing but the page.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path: Path, models: dict[str, str]) -> "Iterator[Site]":
    from tests.page.site import Site  # after checks of annotations

    site = Site(tmp_path / "data", **models)
    yield site
    site.stop()


@pytest.fixture
def models() -> dict[str, str]:
    """Beside the embedded one, by name."""
    return {}


@pytest.fixture
def visit(browser, site) -> "Iterator[Callable[..., Visit]]":
    """Opens the page as somebody with a browser of a width, a scheme, and nothing remembered; it must make no error and
    ask no other host."""
    from tests.page.visit import Visit

    made: list[Visit] = []

    def open_page(**more: Any) -> "Visit":
        made.append(Visit(browser, site.address, **more))
        return made[-1]

    yield open_page
    for one in made:
        one.close()
