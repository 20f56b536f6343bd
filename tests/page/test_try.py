"""The page of `undertow export --to web`, opened from a disk: the same pictures as Python's, and no other host."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import undertow
from undertow import UNetService, export_model
from undertow.export.web import MOST_BYTES

pytestmark = pytest.mark.slow

LEVELS = 2
"""Of 255: most that a pixel may differ."""


@pytest.fixture(scope="module")
def emoji() -> UNetService:
    return undertow.load("emoji", dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(emoji, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("try") / "page"
    parts = export_model(emoji, "web", place)
    assert all(part.difference < part.tolerance for part in parts)
    return place


class Opened:
    """A page that somebody opened by a double click. script: what runs before the page's own."""

    def __init__(self, browser: Any, folder: Path, script: str = ""):
        from playwright.sync_api import expect

        self.expect = expect
        self.page = browser.new_page()
        self.page.set_default_timeout(120_000)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        if script:
            self.page.add_init_script(script)
        self.page.goto((folder / "index.html").as_uri())
        self.status = self.page.locator("#status")

    def says(self, pattern: Any) -> None:
        self.expect(self.status).to_have_text(pattern, timeout=120_000)

    def draw(self, **fields: str) -> Image.Image:
        for name, value in fields.items():
            field = self.page.locator(f"[name={name}]")
            field.select_option(value) if name == "sampler" else field.fill(value)
        before = int(self.page.locator("#picture").get_attribute("data-drawn") or 0)
        self.page.get_by_role("button", name="Draw").click()
        self.expect(self.page.locator("#picture")).to_have_attribute("data-drawn", str(before + 1), timeout=120_000)
        width, height, values = self.page.evaluate(
            """() => {
              const { width, height } = document.getElementById("picture");
              const context = document.getElementById("picture").getContext("2d");
              return [width, height, Array.from(context.getImageData(0, 0, width, height).data)];
            }"""
        )
        return Image.fromarray(np.array(values, dtype=np.uint8).reshape(height, width, 4)[..., :3])

    def close(self) -> None:
        self.page.close()


@pytest.fixture
def opened(browser, folder) -> Iterator[Opened]:
    one = Opened(browser, folder)
    yield one
    one.close()


def off_by(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def test_a_page_from_a_disk_draws_what_python_draws(emoji, folder, opened):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    opened.says("Ready")
    few = {"steps": 4, "sampler": "dpmpp_2m", "guidance_scale": 5.0}
    drawn = opened.draw(prompt="owl on pink background", seed="7", steps="4")
    expected = emoji.generate("owl on pink background", seed=7, dialect="plain", **few).images[0]
    assert off_by(drawn, expected) <= LEVELS
    assert np.asarray(expected).std() > 20  # not one color, which any page could draw

    # A seed of more than 32 bits, a sampler that draws noise at every step, a negative prompt and an emoji.
    seed, prompt = 2**40 + 5, "🍎 left of dog face on blue background"
    drawn = opened.draw(prompt=prompt, negative="red", seed=str(seed), steps="5", sampler="euler_a", guidance="3")
    expected = emoji.generate(
        prompt, negative_prompt="red", seed=seed, steps=5, sampler="euler_a", guidance_scale=3.0, dialect="plain"
    ).images[0]
    assert off_by(drawn, expected) <= LEVELS

    # Without guidance, with the other two samplers; with a word that it never learned, and with too many.
    for sampler, prompt, same, note in (
        ("euler", "zebra", "zebra", "never learned by this model: zebra"),
        ("lcm", "owl " * 40, "owl " * 30, "too long, cut off: owl owl owl owl owl owl owl owl owl owl"),
    ):
        drawn = opened.draw(prompt=prompt, negative="", seed="3", steps="2", sampler=sampler, guidance="1")
        opened.says(re.compile(f"Drawn in .* s; {note}$"))
        settings = {"seed": 3, "steps": 2, "sampler": sampler, "guidance_scale": 1.0, "dialect": "plain"}
        assert off_by(drawn, emoji.generate(same, **settings).images[0]) <= LEVELS

    opened.page.locator("[name=seed]").fill("-1")
    opened.page.get_by_role("button", name="Draw").click()
    opened.says(re.compile("Seed is -1; a whole number from 0 to 18446744073709551615"))
    assert {url.partition(":")[0] for url in opened.asked} <= {"file", "data", "blob"}
    assert not opened.errors


def test_a_model_in_few_steps_begins_as_python_draws_it(browser, tmp_path):
    turbo = undertow.load("emoji-turbo", dtype=torch.float32)
    export_model(turbo, "web", tmp_path / "page")
    one = Opened(browser, tmp_path / "page")
    one.says("Ready")
    drawn = one.draw(prompt="owl on pink background", seed="7")
    expected = turbo.generate("owl on pink background", seed=7, dialect="plain").images[0]
    assert off_by(drawn, expected) <= LEVELS
    assert [one.page.locator(f"[name={name}]").input_value() for name in ("steps", "guidance")] == ["4", "1"]
    one.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("WebAssembly.validate = () => false", "This browser has WebAssembly without SIMD"),
        ("delete globalThis.WebAssembly", "This browser has no WebAssembly"),
    ],
)
def test_a_browser_that_cannot_draw_is_told_so(script, said, browser, folder):
    one = Opened(browser, folder, script)
    one.says(re.compile(said + ", which drawing needs"))
    one.expect(one.page.get_by_role("button", name="Draw")).to_be_disabled()
    one.close()


def test_a_file_that_is_missing_is_named(browser, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / "unet.js").unlink()
    one = Opened(browser, tmp_path / "page")
    one.says("The page cannot start: unet.js is missing beside this page")
    one.close()
