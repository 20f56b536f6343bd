"""Everything that the page does, as people do it. `make test-page` runs it; it takes a minute."""

import json
import re
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from tests.embedded import SIDE
from undertow.serving.jobs import JobState
from undertow.training.log import StepRecord, append_record

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.slow

VIEWS = ("draw", "queue", "history", "inspect", "metrics")


def picture_file(size: tuple[int, int] = (100, 80), color: tuple[int, int, int] = (200, 40, 40)) -> dict:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return {"name": "photo.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def lora_file(name: str, wide: int) -> dict:
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.zeros(2, wide), f"{stem}.lora_up.weight": torch.zeros(32, 2)}
    return {"name": name, "mimeType": "application/octet-stream", "buffer": save(tensors)}


def requests_of(site) -> list[dict]:
    """What jobs were asked to draw, the newest first."""
    return [job.spec.request for job in site.api.store.jobs(limit=100)]


def section(here, name: str):
    """A part of the settings, opened."""
    found = here.page.locator("details.section").filter(has=here.page.locator(".section-title", has_text=name))
    if not found.evaluate("one => one.open"):
        found.locator("summary").first.click()
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_is_accessible_and_fits(site, visit, width, scheme):
    here = visit(width=width, scheme=scheme)
    here.draw("red apple")
    here.is_drawn()
    site.held.set()
    here.draw("a job that runs")
    here.page.get_by_text("Drawing,").wait_for()
    for view in VIEWS:
        here.show(view)
        here.page.locator("h1, .stage").first.wait_for()
        assert not here.violations(), view
        assert not here.overflows(), view
    here.show("draw")
    for name in ("Start from an image", "Adapters", "Regions", "More"):
        section(here, name)
    here.button("Add a box").click()
    here.button("+ mosaic LoRA").click()
    assert not here.violations()
    assert not here.overflows()
    here.page.keyboard.press("Escape")
    here.page.locator("body").press("?")
    here.page.get_by_role("heading", name="Keys").wait_for()
    assert not here.violations()


def test_a_key_does_everything(site, visit):
    """Draw, cancel, new seed, views, theme and help without a pointer."""
    here = visit()
    here.page.keyboard.press("/")
    expect(here.prompt).to_be_focused()
    site.held.set()
    here.page.keyboard.type("owl with keys? n 3")
    here.page.keyboard.press("Control+Enter")
    here.page.get_by_text("Drawing,").wait_for()
    assert requests_of(site)[0]["prompt"] == "owl with keys? n 3"
    here.page.keyboard.press("Escape")
    site.held.clear()
    expect(here.page.locator(".standing")).to_contain_text("Canceled")
    here.prompt.blur()
    here.page.keyboard.press("n")
    expect(here.page.get_by_label("Seed", exact=True)).to_have_value(re.compile(r"^\d+$"))
    for key, view in zip("12345", VIEWS, strict=True):
        here.page.keyboard.press(key)
        expect(here.page.locator(f'nav a[href="#{view}"]')).to_have_attribute("aria-current", "page")
    for theme in ("light", "dark"):
        here.page.keyboard.press("t")
        expect(here.page.locator("html")).to_have_attribute("data-theme", theme)
    here.page.keyboard.press("?")
    expect(here.page.get_by_role("dialog")).to_contain_text("What changed")
    here.page.keyboard.press("Escape")
    expect(here.page.get_by_role("dialog")).to_have_count(0)


def test_a_running_job_shows_its_previews_and_its_time(site, visit):
    here = visit()
    site.held.set()
    here.draw("red apple")
    expect(here.page.get_by_role("img", name="How it looks now")).to_be_visible()
    expect(here.page.locator(".standing")).to_contain_text(re.compile(r"step \d+ of 20"))
    expect(here.page.locator(".standing")).to_contain_text(re.compile("done"))
    site.held.clear()
    here.is_drawn()


def test_typing_draws_and_cancels_what_it_replaces(site, visit):
    here = visit()
    here.page.get_by_label("Draw while typing").check()
    site.held.set()
    here.prompt.press_sequentially("a red ap", delay=20)
    here.page.get_by_text("Drawing,").wait_for()
    here.prompt.press_sequentially("ple", delay=20)
    expect(here.page.locator(".standing")).not_to_contain_text("Stopping")
    site.held.clear()
    here.is_drawn()
    jobs = site.api.store.jobs(limit=10)
    assert [(job.spec.request["prompt"], job.state) for job in jobs] == [
        ("a red apple", JobState.SUCCEEDED),
        ("a red ap", JobState.CANCELED),
    ]
    assert {job.spec.mode for job in jobs} == {"fast"}
    here.show("history")
    here.page.get_by_text("No pictures yet.").wait_for()


def test_a_mask_is_painted_and_its_place_drawn_again(site, visit):
    here = visit()
    here.draw("red apple")
    here.is_drawn()
    here.button("Start from it").click()
    here.button("Paint a mask").click()
    canvas = here.page.locator(".mask-canvas")
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    here.page.mouse.move(*middle)
    here.page.mouse.down()
    here.page.mouse.move(middle[0] + 30, middle[1])
    here.page.mouse.up()
    canvas.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", " "):
        here.page.keyboard.press(key)
    assert not here.violations()
    here.button("Undo").click()
    here.page.keyboard.press("Control+Shift+Z")
    here.button("Use this mask").click()
    here.page.get_by_role("img", name="The mask: white is drawn anew").wait_for()
    here.draw("green apple")
    here.is_drawn()
    request = requests_of(site)[0]
    assert request["prompt"] == "green apple"
    mask = Image.open(BytesIO(site.api.artifacts.read(request["mask"]["artifact"]))).convert("L")
    assert mask.size == (SIDE, SIDE)
    assert mask.getpixel((SIDE // 2, SIDE // 2)) == 255
    assert mask.getpixel((SIDE // 2, 23 * SIDE // 64)) == 255, "painted by keys"
    assert mask.getpixel((2, 2)) == mask.getpixel((SIDE - 4, SIDE - 4)) == 0
    assert request["image"]["size"] == [SIDE, SIDE]


def test_an_image_is_cut_to_the_size_and_again_when_that_changes(site, visit):
    here = visit()
    with here.page.expect_file_chooser() as chooser:
        section(here, "Start from an image").get_by_text("Choose an image").click()
    chooser.value.set_files(picture_file())
    here.page.get_by_role("img", name="The image to start from").wait_for()
    with here.page.expect_response("**/v1/artifacts"):
        here.page.get_by_role("slider", name="Width").fill("96")
    expect(here.page.get_by_label("Strength", exact=True)).to_be_visible()
    here.page.wait_for_function("JSON.parse(localStorage['undertow-form']).request.size[1] === 96")
    here.draw("red apple")
    here.is_drawn()
    assert requests_of(site)[0]["size"] == [SIDE, 96]
    assert requests_of(site)[0]["image"]["size"] == [96, SIDE]


def test_a_lora_is_dropped_and_its_refusal_read(site, visit):
    here = visit(refused=True)
    chosen = section(here, "Adapters").locator("input[type=file]")
    chosen.set_input_files(lora_file("portrait-sdxl.safetensors", 2048))
    refusal = here.page.get_by_role("alert")
    expect(refusal).to_contain_text("portrait-sdxl.safetensors was not taken.")
    expect(refusal).to_contain_text("made for a model whose text is 2048 wide")
    assert not here.violations()
    chosen.set_input_files({"name": "old.ckpt", "mimeType": "application/octet-stream", "buffer": b"x"})
    expect(refusal).to_contain_text("is no safetensors file")
    here.button("Dismiss").click()
    expect(here.button("+ mosaic LoRA")).to_be_visible()
    wide = site.catalog.model("emoji").subject.unet.context_dim
    chosen.set_input_files(lora_file("soft.safetensors", wide))
    strength = here.page.get_by_role("slider", name="Strength of soft")
    strength.fill("0.4")
    expect(refusal).to_have_count(0)
    here.draw("red apple")
    here.is_drawn()
    (adapter,) = requests_of(site)[0]["adapters"]
    assert (adapter["source"], adapter["scale"]) == ("soft", 0.4)


def test_control_maps_and_references_are_given_as_pictures(site, visit):
    here = visit()
    adapters = section(here, "Adapters")
    here.button("+ edges ControlNet").click()
    adapters.locator(".adapter input[type=file]").set_input_files(picture_file())
    here.page.get_by_role("img", name="Control map of edges").wait_for()
    here.draw("red apple")
    here.is_drawn()
    (adapter,) = requests_of(site)[0]["adapters"]
    assert adapter["source"] == "edges"
    given = adapter["image"][0] if isinstance(adapter["image"], list) else adapter["image"]
    assert given["size"] == [SIDE, SIDE]


def test_regions_are_boxes(site, visit):
    here = visit()
    regions = section(here, "Regions")
    board = regions.locator(".board")
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    assert box is not None
    here.page.mouse.move(box["x"] + 2, box["y"] + 2)
    here.page.mouse.down()
    here.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2)
    here.page.mouse.up()
    here.page.get_by_label("Prompt of box 1").fill("red apple")
    here.button("Add a box").click()
    here.page.get_by_label("Prompt of box 2").fill("dog face")
    here.page.get_by_role("button", name="Box 2: dog face").press("ArrowLeft")
    here.draw("on blue background")
    here.is_drawn()
    first, second = requests_of(site)[0]["regions"]
    assert first["prompt"] == "red apple"
    assert first["box"] == pytest.approx([0, 0, 0.5, 1], abs=0.03)
    assert (second["prompt"], second["box"]) == ("dog face", [0.45, 0, 0.95, 1])


def test_ten_jobs_two_canceled_and_the_page_opened_again(site, visit):
    here = visit()
    site.held.set()
    for k in range(10):
        here.draw(f"picture {k}")
    here.show("queue")
    rows = here.page.locator(".job")
    expect(rows).to_have_count(10)
    for k in (4, 7):
        here.page.get_by_role("button", name=f"Cancel picture {k}").click()
    expect(rows).to_have_count(8)
    here.page.get_by_role("button", name="Draw picture 9 next").click()
    expect(rows.nth(1)).to_contain_text("picture 9")
    here.page.get_by_role("button", name="Draw picture 2 later").click()
    expect(rows.nth(3)).to_contain_text("picture 3")
    here.page.close()
    here.open()
    here.show("queue")
    expect(rows := here.page.locator(".job")).to_have_count(8)
    expect(rows.nth(1)).to_contain_text("picture 9")
    expect(rows.nth(1)).to_contain_text(re.compile("done"))
    site.held.clear()
    expect(here.page.get_by_text("Nothing is being drawn.")).to_be_visible()
    here.show("history")
    expect(here.page.locator(".card")).to_have_count(8)
    drawn = sorted(site.api.store.jobs(states=(JobState.SUCCEEDED,), limit=20), key=lambda job: job.finished_at)
    assert [job.spec.request["prompt"][-1] for job in drawn] == list("09132568")


def test_the_service_stops_and_comes_back_under_the_page(site, visit):
    here = visit()
    here.away = True
    site.held.set()
    here.draw("red apple")
    here.page.get_by_text("Drawing,").wait_for()
    site.stop()
    expect(here.page.get_by_role("alert")).to_contain_text("The service is away.")
    here.prompt.fill("submitted while it was away")
    here.button("Draw").click()
    site.held.clear()
    site.start()
    expect(here.page.get_by_role("alert")).to_have_count(0)
    here.page.get_by_role("img", name="submitted while it was away, seed").wait_for()
    assert {job.spec.request["prompt"]: job.state for job in site.api.store.jobs(limit=5)} == {
        "red apple": JobState.SUCCEEDED,
        "submitted while it was away": JobState.SUCCEEDED,
    }


def test_history_restores_every_setting(site, visit):
    """The same request is answered from the picture that is there, so nothing was lost."""
    wanted = {
        "prompt": "red (apple:1.2)", "negative_prompt": "blurry", "dialect": "comfy", "seed": 7, "steps": 3,
        "sampler": "euler_a", "sampler_options": {"eta": 0.5}, "schedule": "karras", "guidance_scale": 3.5,
        "guidance_method": "cfg+rescale", "size": [64, 48], "seamless": "x", "clip_skip": 2, "format": "webp",
        "adapters": [{"source": "mosaic", "scale": [0.5, 1.0], "start": 0.2}], "mode": "fast",
        "regions": [{"prompt": "owl", "box": [0, 0, 0.5, 1], "weight": 2.0}], "regions_by": "attention",
    }  # fmt: skip
    answer = site.api.client.post("/v1/jobs", json=wanted)
    assert answer.status_code == 202, answer.text
    here = visit()
    here.show("history")
    here.page.get_by_role("button", name="red (apple:1.2), seed 7").click()
    here.button("Restore settings").click()
    section(here, "More")
    here.button("Leave out sampler_options").wait_for()
    with here.page.expect_response("**/v1/jobs") as again:
        here.button("Draw").click()
    job = again.value.json()
    assert job["reused"], (job["request"], answer.json()["request"])
    assert job["request"] == answer.json()["request"]


def test_what_changed_between_two_pictures(site, visit):
    for seed in (1, 2):
        site.api.client.post("/v1/jobs", json={"prompt": "owl", "seed": seed, "steps": 2 + seed})
    here = visit()
    here.show("history")
    for box in here.page.get_by_label("Compare").all():
        box.check()
    here.page.keyboard.press("c")
    dialog = here.page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 settings differ")
    rows = dialog.locator("tbody tr")
    assert [row.inner_text().split("\t") for row in rows.all()] == [["seed", "2", "1"], ["steps", "4", "3"]]
    expect(dialog).to_contain_text("100.0 % of pixels differ; a channel by 0.3 of 255 on average, by 1 at most.")
    dialog.get_by_role("slider", name="First left of the line").fill("20")
    assert not here.violations()


def test_a_service_with_keys_asks_for_one_and_keeps_it_in_the_tab(site, visit):
    secret = site.api.key("ann", "submit", "read")["Authorization"].removeprefix("Bearer ")
    here = visit(refused=True)
    here.page.get_by_role("heading", name="A key is needed").wait_for()
    assert not here.violations()
    here.page.get_by_label("Key", exact=True).fill("ut_wrong")
    here.button("Use this key").click()
    here.page.get_by_role("heading", name="This key is not taken").wait_for()
    here.page.get_by_label("Key", exact=True).fill(secret)
    here.button("Use this key").click()
    here.draw("red apple")
    here.is_drawn()
    picture = here.page.get_by_role("img", name="red apple, seed").first
    expect(picture).to_have_attribute("src", re.compile("^blob:"))
    here.page.reload()
    here.page.get_by_role("img", name="red apple, seed").first.wait_for()
    assert secret not in json.dumps(here.page.evaluate("({...localStorage})"))
    here.show("inspect")
    here.page.get_by_text("need a key with the scope inspect").wait_for()


def test_what_the_doctor_says_is_done_by_a_button(site, visit):
    """The answer is one of the API, without the ten evaluations of a network that it takes."""
    finding = {
        "rule": "guidance-high", "family": "picture", "severity": "warning", "symptom": "Colors are burnt.",
        "evidence": "12 % of pixels are at their limits.", "cause": "guidance_scale is 15.", "fix": "Take 5.",
        "prevention": "", "module": "", "changes": [{"where": "request", "name": "guidance_scale", "value": 5.0}],
    }  # fmt: skip
    answer = {"job": "job_1", "subject": None, "model": "emoji", "serious": False, "findings": [finding]}
    here = visit()
    here.page.route("**/v1/diagnose", lambda route: route.fulfill(json={**answer, "rules": ["x"], "skipped": {}}))
    here.page.get_by_role("slider", name="Guidance scale").fill("15")
    here.show("inspect")
    here.button("Diagnose").click()
    expect(here.page.locator(".finding")).to_contain_text("Colors are burnt.")
    assert not here.violations()
    here.button("Use guidance_scale 5").click()
    here.show("draw")
    expect(here.page.get_by_role("slider", name="Guidance scale")).to_have_value("5")


def test_metrics_show_the_four_groups(site, visit):
    here = visit()
    here.draw("red apple")
    here.is_drawn()
    here.show("metrics")
    for group in ("Performance", "Quality", "Resources", "Adapters"):
        here.page.get_by_role("heading", name=group, exact=True).wait_for()
    expect(here.page.locator("#performance-title + dl")).to_contain_text("within 10 % or a second")


def test_a_training_shows_its_loss_and_gradient_norm(site, visit, tmp_path):
    log = tmp_path / "log.jsonl"
    for step, loss in ((1, 0.5), (2, 0.4), (2, 0.3)):  # the last one again, after it was resumed
        numbers = {"gradient_norm": 1.5, "learning_rate": 1e-3, "images_per_second": 8.0, "seconds": 61.0}
        append_record(log, StepRecord(step=step, loss=loss, **numbers))
    with log.open("a") as file:
        file.write('{"step": 3, "lo')
    here = visit()
    here.show("metrics")
    chosen = here.page.get_by_label("Open the log.jsonl of a training")
    chosen.set_input_files(log)
    panel = here.page.locator("section[aria-labelledby=training-title]")
    expect(panel).to_contain_text("log.jsonl: step 2")
    expect(panel.get_by_role("img", name="Loss: from 0.300 to 0.500")).to_be_visible()
    expect(panel).to_contain_text("now 1.50")
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    chosen.set_input_files(other)
    expect(panel.get_by_role("alert")).to_contain_text("other.jsonl holds no step of a training")
    assert not here.violations()


def test_refusals_are_read_where_they_are_caused(site, visit):
    here = visit(refused=True)
    here.prompt.fill("red (apple:1.2")
    here.page.get_by_text("Negative prompt and dialect").click()
    here.page.get_by_label("Dialect of weights").select_option("comfy")
    here.page.evaluate(
        "localStorage['undertow-form'] = JSON.stringify({request: {prompt: 'x', sampler: 'eulr'}, options: {}})"
    )
    here.page.reload()
    here.button("Draw").click()
    expect(here.page.locator(".notice.refused")).to_contain_text("euler")


def test_the_page_needs_nothing_but_the_built_files():
    text = (Path(__file__).parents[2] / "src/undertow/serving/page/index.html").read_text()
    assert not re.search(r"https?://", text)
