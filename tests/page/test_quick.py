"""A model that is drawn in few steps, in the studio: what it sets, when it is offered, and how it follows typing."""

import re

import pytest
from playwright.sync_api import expect

from tests.distilled import distilled_emoji
from undertow.serving.jobs import JobState

OFFER = "Use turbo: 4 steps"


@pytest.fixture
def models(tmp_path) -> dict[str, str]:
    return {"turbo": str(distilled_emoji(tmp_path / "turbo"))}


def model(here):
    return here.page.get_by_label("Model", exact=True)


def values(here) -> tuple[str, str]:
    """Steps and guidance, as the sliders have them."""
    return tuple(here.page.get_by_label(name, exact=True).input_value() for name in ("Steps", "Guidance scale"))


def requests(site) -> list[tuple[str, int, float]]:
    """Prompt, steps and guidance of all jobs, the newest first."""
    drawn = [job.spec.request for job in site.api.store.jobs(limit=50)]
    return [(one["prompt"], one["steps"], one["guidance_scale"]) for one in drawn]


def test_a_model_sets_what_suits_it_but_for_what_was_set(site, visit):
    here = visit()
    assert values(here) == ("20", "5")
    model(here).select_option("turbo")
    assert values(here) == ("4", "1")
    here.draw("owl")
    here.is_drawn()
    here.button("Restore settings").click()  # of which none is anybody's own
    model(here).select_option("emoji")
    assert values(here) == ("20", "5")
    here.page.get_by_label("Steps", exact=True).fill("12")
    model(here).select_option("turbo")
    assert values(here) == ("12", "1")
    here.button("Use what suits turbo: 4 steps, guidance 1").click()
    assert values(here) == ("4", "1")
    assert requests(site) == [("owl", 4, 1.0)]


def test_whoever_draws_while_typing_is_offered_the_quick_model(site, visit):
    here = visit()
    offer = here.button(OFFER)
    expect(offer).to_be_hidden()
    here.page.get_by_label("Draw while typing").check()
    expect(offer).to_be_visible()
    assert not here.violations()
    offer.click()
    expect(offer).to_be_hidden()
    assert model(here).input_value() == "turbo"


def test_a_quick_model_is_asked_without_a_pause_and_nothing_is_canceled(site, visit):
    here = visit()
    here.page.get_by_label("Draw while typing").check()
    here.button(OFFER).click()
    site.held.set()
    here.prompt.press_sequentially("a red apple", delay=10)  # three are on their way, and the rest waits for them
    site.held.clear()
    expect(here.page.locator(".stage img.picture")).to_have_attribute("alt", re.compile("^a red apple, seed"))
    jobs = site.api.store.jobs(limit=50)
    last, *first = (job.spec.request["prompt"] for job in jobs)
    assert last == "a red apple"
    assert len(set(first)) == 3  # which left at once, and may overtake
    assert all(last.startswith(one) for one in first)
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert len({job.spec.request["seed"] for job in jobs}) == 1  # nothing changes but what is written
    here.button("Draw").click()
    here.is_drawn()
    expect(here.page.locator(".standing")).not_to_contain_text("while typing")


FASTER_THAN_FRAMES = """async prompt => {
    for (const written of ["o", "ow", "owl"]) {
        prompt.value = written;
        prompt.dispatchEvent(new Event("input", {bubbles: true}));
        await new Promise(resolve => setTimeout(resolve));
    }
}"""


def test_keys_that_come_faster_than_frames_are_not_drawn_twice(site, visit):
    here = visit()
    here.page.get_by_label("Draw while typing").check()
    here.button(OFFER).click()
    here.prompt.evaluate(FASTER_THAN_FRAMES)
    expect(here.page.locator(".stage img.picture")).to_have_attribute("alt", re.compile("^owl, seed"))
    drawn = [prompt for prompt, *_ in requests(site)]
    assert len(drawn) == len(set(drawn))
