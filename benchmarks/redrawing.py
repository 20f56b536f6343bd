"""How soon a picture follows what is typed: the studio of `undertow serve`, typed into letter by letter, headless.

    python -m benchmarks.redrawing [MODEL] [--keys 8,20] [--threads 2] [--precision bf16] [--backend packed]
                                   [--address http://127.0.0.1:8188]

Prints, for each pace of typing in keys a second: pictures that were seen a second, and from each key press to the first
picture that knows the key, the median and the 95th percentile. --address: of a service that runs already.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Page, expect, sync_playwright

from recipes.arguments import count
from tests.page.conftest import CHROMIUM
from tests.page.visit import Visit

PORT = 8196
READY_S = 120.0
PATIENCE_S = 30.0
TEXTS = (
    "red apple left of dog face on blue background",
    "owl above rocket on pink background",
    "penguin right of octopus on green background",
)
"""What is typed; the first one warms up, and is not counted."""

WATCH = """() => {
  window.keys = []; window.seen = [];
  let last = "";
  document.querySelector("#prompt").addEventListener("input", (event) =>
    window.keys.push([event.target.value, performance.now()]), true);
  setInterval(() => {
    const picture = document.querySelector(".stage .canvas img.picture:not(.preview)");
    if (!picture?.complete || picture.alt === last) return;
    last = picture.alt;
    window.seen.push([last.slice(0, last.lastIndexOf(", seed ")), performance.now()]);
  }, 2);
}"""
"""Notes texts with the time when they were typed, and when a picture of them was there."""


@dataclass(frozen=True, kw_only=True)
class Typed:
    """Of one text. waits_ms: from each key press to the first picture that knows it. rate: pictures a second, from the
    first to the last."""

    waits_ms: Sequence[float]
    pictures: int
    rate: float


def opened(page: Page, model: str) -> None:
    """Waits for the page, and has it draw while somebody types."""
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_enabled()
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Draw while typing").check()
    page.evaluate(WATCH)


def typed(page: Page, text: str, keys_a_second: float) -> Typed:
    """Types a text into an empty prompt, and waits for its picture."""
    page.get_by_role("textbox", name="Prompt", exact=True).fill("")
    page.evaluate("() => { window.keys = []; window.seen = []; }")
    page.locator("#prompt").press_sequentially(text, delay=1000 / keys_a_second)
    until = time.monotonic() + PATIENCE_S
    while not page.evaluate("(text) => window.seen.some(([of]) => of === text)", text):
        assert time.monotonic() < until, f"no picture of {text!r} in {PATIENCE_S:.0f} s"
        time.sleep(0.05)
    keys, seen = page.evaluate("() => window.keys"), page.evaluate("() => window.seen")
    known = [(len(of), at) for of, at in seen if text.startswith(of)]
    waits = [min(at for length, at in known if length >= len(value)) - pressed for value, pressed in keys]
    seconds = (known[-1][1] - known[0][1]) / 1000
    return Typed(waits_ms=waits, pictures=len(known), rate=(len(known) - 1) / seconds if seconds else float("nan"))


def served(stack: ExitStack, model: str, *settings: str) -> str:
    """The address of a service of its own, that is ready and has measured its model."""
    data = stack.enter_context(tempfile.TemporaryDirectory())
    command = ["-m", "undertow", "serve", model, "--data", data, "--port", str(PORT), *settings]
    log = stack.enter_context((Path(data) / "log").open("w"))
    process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    address, until = f"http://127.0.0.1:{PORT}", time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            with urlopen(f"{address}/health/ready"):
                return address
        except URLError:
            time.sleep(0.2)
    sys.exit((Path(data) / "log").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji-turbo")
    parser.add_argument("--keys", default="8,20")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--precision", default="f32", choices=("f32", "f16", "bf16"))
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--address")
    options = parser.parse_args()
    settings = ("--threads", str(options.threads), "--precision", options.precision, "--backend", options.backend)
    with ExitStack() as stack:
        address = options.address or served(stack, options.model, *settings)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visit = Visit(browser, address)
        page = visit.page
        opened(page, options.model)
        typed(page, TEXTS[0], 4)
        print(f"{options.model}: keys/s  pictures/s  pictures  median ms  95th percentile ms")
        for keys in map(float, options.keys.split(",")):
            page.reload()  # has another seed: pictures that were drawn before would be shown again
            opened(page, options.model)
            found = [typed(page, text, keys) for text in TEXTS[1:]]
            waits = [wait for one in found for wait in one.waits_ms]
            median, slow = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
            rate, pictures = statistics.mean(one.rate for one in found), sum(one.pictures for one in found)
            print(f"{'':{len(options.model)}} {keys:7.0f} {rate:11.1f} {pictures:9} {median:10.0f} {slow:19.0f}")
        visit.close()
        browser.close()


if __name__ == "__main__":
    main()
