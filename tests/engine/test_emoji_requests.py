"""What every kind of request promises, kept by the embedded model on a handful of prompts; docs/results/requests.md
has the shares over many."""

from random import Random

import pytest
import torch
from PIL import Image

import undertow
from benchmarks.lib.request_measures import (
    Canvas,
    Seams,
    boxes,
    column_steps,
    difference,
    found_in_regions,
    half_mask,
    inpaint,
    levels,
    place,
    rendered,
    ring,
    seams,
    start_from,
    to_image,
)
from recipes.emoji.editions import CRISP, FIRST, edition_of
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import Scene, draw_pair_kept_out
from tests.embedded import SIDE
from tests.recipes.emoji.tiny import drawn_glyphs, needs_font
from undertow import GenerationRequest, Views

OUTSIDE = 0
"""Levels of 255: kept pixels are pasted, not drawn."""
RECONSTRUCTED = 1
"""Levels of 255: the same numbers, rounded by two programs."""
KEPT_LATENTS = 0.0
"""The kept latents are put in place of the drawn ones at the end."""

BASE = GenerationRequest(prompt="", sampler="euler", steps=6, guidance_scale=4.0)
ROW = Scene(names=("crown", "skull"), color="pink", relation="right of")
COLUMN = Scene(names=("owl", "key"), color="white", relation="above")


@pytest.fixture(scope="module")
def emoji():
    return undertow.load("emoji", dtype=torch.float32)


def test_pictures_are_of_the_model_s_own_edition(emoji):
    assert edition_of(emoji.vae.config.sample_size).side == SIDE


def test_inpainting_changes_nothing_but_the_mask(emoji):
    found = inpaint(emoji, BASE, 3, drawn_glyphs())
    assert found.outside <= OUTSIDE
    assert found.latents <= KEPT_LATENTS
    for before, after, scene in zip(found.before, found.after, found.scenes, strict=True):
        anew = levels(half_mask(scene, SIDE).convert("RGB")).bool()
        assert difference(before, after, anew) > 100  # levels: another emoji is another picture


def test_strength_0_gives_the_reconstruction(emoji):
    assert start_from(emoji, BASE, 2, drawn_glyphs()) <= RECONSTRUCTED


@pytest.mark.slow
@needs_font
def test_emoji_stand_in_their_regions(emoji):
    """A trained size for each region. By chance one of 10,000 would be right."""
    canvas = Canvas(name="a view for each", by="estimates", views=Views(overlap=0.0))
    found = place(emoji, BASE, canvas, 4, Glyphs())
    assert [picture.size for picture in found.pictures] == [
        (2 * SIDE, SIDE) if scene.is_row else (SIDE, 2 * SIDE) for scene in found.scenes
    ]
    assert found.each > 0.5


@pytest.mark.parametrize("edition", [FIRST, CRISP])
@pytest.mark.parametrize("scene", [ROW, COLUMN])
def test_regions_are_looked_at_where_the_relation_says(scene, edition):
    glyphs = drawn_glyphs()
    picture = rendered(scene, Random(0), glyphs, edition)
    upside_down = picture.transpose(Image.Transpose.ROTATE_180)
    assert found_in_regions([picture], [scene], glyphs, edition.side).all()
    assert not found_in_regions([upside_down], [scene], glyphs, edition.side).all()
    assert boxes(ROW) == ((0.5, 0, 1, 1), (0, 0, 0.5, 1))


def test_seams_are_told_from_what_stands_there():
    """Two flat halves have a seam in the middle and, as a ring, at the edges; an even ramp has none."""
    halves = torch.zeros(3, 4, 8, dtype=torch.uint8)
    halves[:, :, 4:] = 90
    assert column_steps(halves).tolist() == [90, 0, 0, 0, 90, 0, 0, 0]
    found = Seams.along("", [to_image(halves)], [4])
    assert (found.across, found.beside) == (90, 0)
    assert Seams.along("", [to_image(halves)], [0]).across == 90
    ramp = torch.arange(8, dtype=torch.uint8).mul(20).expand(3, 4, 8)
    assert Seams.along("", [to_image(ramp)], [4]).ratio == 1


@pytest.mark.slow
def test_views_and_rings_are_drawn_and_measured(emoji):
    wide = seams(emoji, BASE, 2 * SIDE, 0.5, 1)
    assert wide.picture.size == (2 * SIDE, SIDE)
    assert wide.ratio > 0
    closed = ring(emoji, BASE, SIDE, "x", 1)
    assert closed.picture.size == (SIDE, SIDE)
    assert closed.across == pytest.approx(
        float((levels(closed.picture)[:, :, 0].float() - levels(closed.picture)[:, :, -1].float()).abs().mean())
    )


def test_the_pairs_are_those_kept_out_of_training(emoji):
    random = Random(0)
    scene = draw_pair_kept_out(random)
    request = Canvas(name="", by="attention", square=True).request(BASE, scene, 3, SIDE)
    assert request.prompt == f"{scene.color} background"
    assert request.size == (SIDE, SIDE)
    assert [region.box for region in request.regions] == list(boxes(scene))
    for region, name in zip(request.regions, scene.names, strict=True):
        assert region.prompt == f"{name} on {scene.color} background"
