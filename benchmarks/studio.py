"""Tries the studio as somebody new would, on a real service with the embedded model, and takes a picture of each thing
that was tried: docs/guides/studio. `make studio-pictures`; some minutes."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from safetensors.torch import save

from tests.page.visit import Visit

PORT = 8197
ADDRESS = f"http://127.0.0.1:{PORT}"
PATIENCE_MS = 180_000
MOST_BYTES = 150_000


class Service:
    """`undertow serve` in a process of its own, which can be killed and started again."""

    def __init__(self, data: Path):
        self._data = data
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "undertow", "serve", "--data", str(self._data), "--port", str(PORT)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """Its children notice, and end."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Photographer:
    """Writes what a page shows, as WebP of at most 150 kB."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, visit: Visit, name: str) -> None:
        time.sleep(0.6)  # until pictures have faded in
        picture = Image.open(BytesIO(visit.page.screenshot()))
        place = self._folder / f"{name}.webp"
        picture.convert("RGB").save(place, quality=82, method=6)
        size = place.stat().st_size
        assert size < MOST_BYTES, f"{place}: {size:,} bytes"
        print(f"{place}: {size:,} bytes", flush=True)


def visited(browser: Browser, **more: object) -> Visit:
    """Somebody who draws fast, which suits a page, and has few pixels to look at."""
    visit = Visit(browser, ADDRESS, **more)  # type: ignore[arg-type]
    visit.page.set_default_timeout(PATIENCE_MS)
    return visit


def choose(visit: Visit, section: str) -> None:
    """Opens a part of the settings."""
    visit.page.locator("summary", has_text=section).first.click()


def first_picture(visit: Visit, photo: Photographer) -> None:
    photo.take(visit, "first-visit")
    visit.button("owl on pink background").click()
    visit.page.get_by_role("img", name="How it looks now").wait_for()
    photo.take(visit, "drawing")
    visit.is_drawn()
    photo.take(visit, "drawn")


def fast(visit: Visit) -> None:
    choose(visit, "More")
    visit.page.get_by_label("Mode", exact=True).select_option("fast")
    choose(visit, "More")
    visit.page.get_by_role("slider", name="Steps").fill("12")


def mask(visit: Visit, photo: Photographer) -> None:
    visit.button("Start from it").click()
    visit.button("Paint a mask").click()
    box = visit.page.locator(".mask-canvas").bounding_box()
    assert box is not None
    for height in (0.12, 0.24):
        visit.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * height)
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * height, steps=8)
        visit.page.mouse.up()
    photo.take(visit, "mask")
    visit.button("Use this mask").click()
    visit.page.get_by_role("dialog").wait_for(state="detached")
    visit.draw("owl with crown on pink background")
    visit.page.get_by_role("img", name="owl with crown on pink background, seed").first.wait_for()
    visit.page.evaluate("scrollTo(0, 0)")
    photo.take(visit, "masked")
    visit.button("Remove the image").click()


def refusal(visit: Visit, photo: Photographer) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.zeros(4, 2048), f"{stem}.lora_up.weight": torch.zeros(640, 4)}
    choose(visit, "Adapters")
    visit.refused = True
    visit.page.locator("input[accept='.safetensors']").set_input_files(
        {"name": "portrait-sdxl.safetensors", "mimeType": "application/octet-stream", "buffer": save(tensors)}
    )
    visit.page.get_by_role("alert").scroll_into_view_if_needed()
    photo.take(visit, "lora-refused")
    visit.page.locator(".notice.refused").get_by_role("button", name="Dismiss").click()
    visit.button("+ mosaic LoRA").click()
    visit.draw("red apple on white background")
    visit.page.get_by_role("img", name="red apple on white background, seed").first.wait_for()
    visit.page.evaluate("scrollTo(0, 0)")
    photo.take(visit, "adapters")
    visit.button("Remove mosaic").click()


def queue(visit: Visit, photo: Photographer) -> None:
    for animal in ("cat", "dog", "fox", "bear", "panda", "tiger", "lion", "frog", "mouse", "rabbit"):
        visit.draw(f"{animal} face on yellow background")
    visit.show("queue")
    for animal in ("lion", "mouse"):
        visit.page.get_by_role("button", name=f"Cancel {animal} face").click()
    visit.page.get_by_role("button", name="Draw rabbit face on yellow background next").click()
    visit.page.close()
    visit.open()
    visit.page.set_default_timeout(PATIENCE_MS)
    visit.show("queue")
    visit.page.locator(".job-picture img").first.wait_for()
    photo.take(visit, "queue")


def away(visit: Visit, photo: Photographer, service: Service) -> None:
    visit.away = True
    service.kill()
    visit.page.get_by_text("The service is away.").wait_for()
    photo.take(visit, "away")
    service.start()
    visit.page.get_by_text("The service is away.").wait_for(state="detached")
    visit.page.get_by_text("Nothing is being drawn.").wait_for()


def history(visit: Visit, photo: Photographer) -> None:
    visit.show("draw")
    visit.page.get_by_label("Seed", exact=True).fill("7")
    visit.draw("red apple on white background")
    visit.page.get_by_role("img", name="red apple on white background, seed 7").first.wait_for()
    visit.is_drawn()
    visit.page.get_by_role("slider", name="Guidance scale").fill("2")
    visit.draw("red apple on blue background")
    visit.page.get_by_role("img", name="red apple on blue background, seed 7").first.wait_for()
    visit.show("history")
    visit.page.locator(".card").nth(10).wait_for()
    photo.take(visit, "history")
    for card in (0, 1):
        visit.page.get_by_label("Compare").nth(card).check()
    visit.button("What changed").click()
    visit.page.get_by_text("of pixels differ").wait_for()
    photo.take(visit, "what-changed")
    visit.page.keyboard.press("Escape")


def inside(visit: Visit, photo: Photographer) -> None:
    visit.show("draw")
    visit.button("Any").click()
    visit.page.get_by_role("slider", name="Guidance scale").fill("5")
    visit.draw("red apple left of dog face on blue background")
    visit.page.get_by_role("img", name="red apple left of dog face on blue background, seed").first.wait_for()
    visit.button("Look inside").click()
    visit.button("Draw it again and look").click()
    visit.page.get_by_role("button", name="apple", exact=True).click()
    visit.button("Diagnose").click()
    visit.page.get_by_text("rules looked").wait_for()
    visit.page.locator("#layers-title ~ .actions button").click()
    visit.page.locator("#layers-title ~ .bars").wait_for()
    photo.take(visit, "inspect")
    visit.show("metrics")
    visit.page.get_by_text("Promised and kept").wait_for()
    photo.take(visit, "metrics")


def everything(browser: Browser, photo: Photographer, service: Service) -> None:
    here = visited(browser)
    first_picture(here, photo)
    fast(here)
    mask(here, photo)
    refusal(here, photo)
    queue(here, photo)
    away(here, photo, service)
    history(here, photo)
    inside(here, photo)
    here.close()
    phone = visited(browser, width=390, scheme="dark")
    phone.page.locator(".film").wait_for()
    photo.take(phone, "phone")
    phone.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    assert chromium, "needs Chromium"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        service = Service(Path(folder) / "data")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            until = time.monotonic() + 120
            while not _answers():
                assert time.monotonic() < until, "the service does not start"
                time.sleep(0.5)
            everything(browser, Photographer(given.out), service)
        finally:
            browser.close()
            service.stop()


def _answers() -> bool:
    import httpx

    try:
        return httpx.get(f"{ADDRESS}/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
