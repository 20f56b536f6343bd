"""Opens the page of `undertow export MODEL --to web` in headless Chromium: seconds to the first picture and the later.

The first is counted from opening the page on; the browser itself runs already. Python draws the same beside it. Beside
seconds by the clock stand those that processors worked for all of Chromium: what a machine would take that has nothing
else to do, or a little more, since what works at the same time is added up.

    python benchmarks/browser.py [--model emoji] [--repeats 5] [--steps 20,8,4] [--page FOLDER]
"""

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from playwright.sync_api import Page, sync_playwright

import undertow

PROMPT, SEED = "owl on pink background", 7
PATIENCE_MS = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default="20,8,4")
    parser.add_argument("--page", type=Path, help="A folder that was exported before.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    service = undertow.load(options.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = options.page
        if folder is None:
            folder = Path(place) / "page"
            undertow.export_model(service, "web", folder)
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        listed = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in files.items())
        print(f"{sum(files.values()) / 1e6:.1f} MB: {listed}")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        print(f"Chromium {browser.version}, undertow {undertow.__version__}\n")
        print("| steps | ready s | worked | first picture s | worked | later s | worked | Python s | worked | off by |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for steps in map(int, options.steps.split(",")):
            print(row(browser, folder, service, steps, options.repeats), flush=True)
        browser.close()


def row(browser: Any, folder: Path, service: undertow.UNetService, steps: int, repeats: int) -> str:
    times: dict[str, list[tuple[float, float]]] = {"ready": [], "first": [], "later": [], "python": []}
    differences: list[int] = []
    for _ in range(repeats):
        page, opened = browser.new_page(), Stopwatch()
        page.goto((folder / "index.html").as_uri())
        page.locator("#status").filter(has_text="Ready").wait_for(timeout=PATIENCE_MS)
        times["ready"].append(opened.seconds())
        for name, value in (("prompt", PROMPT), ("seed", str(SEED)), ("steps", str(steps))):
            page.locator(f"[name={name}]").fill(value)
        sampler = page.locator("[name=sampler]").input_value()
        draw(page, 1)
        times["first"].append(opened.seconds())
        again = Stopwatch()
        draw(page, 2)
        times["later"].append(again.seconds())
        found = pixels(page)
        page.close()
        wall, worked = time.perf_counter(), time.process_time()
        image = service.generate(PROMPT, seed=SEED, steps=steps, sampler=sampler, dialect="plain").images[0]
        times["python"].append((time.perf_counter() - wall, time.process_time() - worked))
        differences.append(int(np.abs(np.asarray(image, dtype=int) - found).max()))
    medians = [statistics.median(values) for pairs in times.values() for values in zip(*pairs, strict=True)]
    return f"| {steps} | {' | '.join(f'{one:.2f}' for one in medians)} | {max(differences)} |"


class Stopwatch:
    """Seconds by the clock, and of processors' work for Chromium, since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), worked_for_chromium()

    def seconds(self) -> tuple[float, float]:
        wall, worked = self._begun
        return time.perf_counter() - wall, worked_for_chromium() - worked


def worked_for_chromium() -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in process.name():
                used = process.cpu_times()
                total += used.user + used.system
    return total


def draw(page: Page, count: int) -> None:
    page.get_by_role("button", name="Draw").click()
    page.locator(f"#picture[data-drawn='{count}']").wait_for(timeout=PATIENCE_MS)


def pixels(page: Page) -> np.ndarray:
    values = page.evaluate(
        """() => {
          const canvas = document.getElementById("picture");
          return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
        }"""
    )
    side = int((len(values) // 4) ** 0.5)
    return np.array(values, dtype=int).reshape(side, side, 4)[..., :3]


if __name__ == "__main__":
    main()
