"""What the studio shows of a network, on a service that draws with the embedded model."""

import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import pytest

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.slow

READY_S = 240.0


@pytest.fixture
def here(browser, tmp_path):
    """Somebody at the page of a real service."""
    from tests.page.visit import Visit

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "undertow", "serve", "--one-process", "--mode", "fast"]
    service = subprocess.Popen(
        [*command, "--data", str(tmp_path), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}")
        visit = Visit(browser, f"http://127.0.0.1:{port}")
        yield visit
        visit.close()
    finally:
        service.terminate()
        service.wait()


def wait_until_ready(url: str) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail("the service did not become ready")


def test_words_findings_layers_and_adapters_are_measured(here):
    """Heat of the apple lies further left than that of the dog; the doctor's rules look; adapters are told apart by
    what they change."""
    here.page.get_by_role("slider", name="Steps").fill("6")
    here.page.get_by_role("slider", name="Guidance scale").fill("15")
    here.page.get_by_label("Seed", exact=True).fill("7")
    here.draw("red apple left of dog face on blue background")
    here.is_drawn()
    here.button("Look inside").click()
    here.button("Draw it again and look").click()
    left: dict[str, float] = {}
    for word in ("apple", "dog"):
        here.page.get_by_role("button", name=word, exact=True).click()
        here.page.get_by_role("img", name=f"Where “{word}” went").wait_for()
        here.page.wait_for_timeout(300)
        left[word] = _left(here)
    assert left["apple"] > left["dog"], left
    here.button("Diagnose").click()
    here.page.get_by_text("rules looked").wait_for()
    here.page.locator("#layers-title ~ .actions button").click()
    here.page.get_by_text("for one forward").wait_for()
    assert not here.violations()
    here.show("draw")
    here.page.locator("summary", has_text="Adapters").click()
    for name in ("mosaic", "line-drawing"):
        here.button(f"+ {name} LoRA").click()
    here.show("metrics")
    here.button("Measure what they do").click()
    here.page.get_by_text("mosaic and line-drawing").wait_for()
    here.page.locator("#statistics-title ~ .actions button").click()
    expect(here.page.locator("#statistics-title ~ .bars svg")).to_have_count(10)
    assert not here.violations()


def _left(here) -> float:
    """The share of red in a map that lies in its left half."""
    return here.page.evaluate("""() => {
        const canvas = document.querySelector('.heat canvas');
        const {width, height} = canvas;
        const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        let [left, right] = [0, 0];
        for (let k = 0; k < pixels.length; k += 4) {
            if ((k / 4) % width < width / 2) left += pixels[k]; else right += pixels[k];
        }
        return left / (left + right);
    }""")
