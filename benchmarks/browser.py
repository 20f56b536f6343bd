"""Opens the page of `undertow export emoji --to web` in headless Chromium: seconds to the first picture and the later.

The first is counted from opening the page on; the browser itself runs already. Python draws the same beside it.

    python benchmarks/browser.py [--repeats 5] [--steps 20,8,4] [--page FOLDER]
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright

import undertow

PROMPT, SEED = "owl on pink background", 7
PATIENCE_MS = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default="20,8,4")
    parser.add_argument("--page", type=Path, help="A folder that was exported before.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    service = undertow.load("emoji", dtype=torch.float32)
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
        print("| steps | first picture s | ready after s | later s | Python s | largest difference of 255 |")
        print("|---|---|---|---|---|---|")
        for steps in map(int, options.steps.split(",")):
            print(row(browser, folder, service, steps, options.repeats), flush=True)
        browser.close()


def row(browser: Any, folder: Path, service: undertow.UNetService, steps: int, repeats: int) -> str:
    firsts, readies, laters, ours, differences = [], [], [], [], []
    for _ in range(repeats):
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto((folder / "index.html").as_uri())
        status = page.locator("#status")
        status.filter(has_text="Ready").wait_for(timeout=PATIENCE_MS)
        readies.append(time.perf_counter() - begun)
        for name, value in (("prompt", PROMPT), ("seed", str(SEED)), ("steps", str(steps))):
            page.locator(f"[name={name}]").fill(value)
        draw(page, 1)
        firsts.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        draw(page, 2)
        laters.append(time.perf_counter() - begun)
        found = pixels(page)
        page.close()
        begun = time.perf_counter()
        image = service.generate(PROMPT, seed=SEED, steps=steps, sampler="dpmpp_2m", dialect="plain").images[0]
        ours.append(time.perf_counter() - begun)
        differences.append(int(np.abs(np.asarray(image, dtype=int) - found).max()))
    medians = " | ".join(f"{statistics.median(one):.2f}" for one in (firsts, readies, laters, ours))
    return f"| {steps} | {medians} | {max(differences)} |"


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
