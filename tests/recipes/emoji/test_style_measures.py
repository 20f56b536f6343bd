"""The figures of docs/results/lora.md: what they are of pictures whose style is known."""

from dataclasses import replace
from random import Random

import pytest
import torch

from benchmarks.lib.style_measures import adherence, all_styles, in_style, share_above
from recipes.emoji.render import ON_CELLS, Glyphs, draw_places, render
from recipes.emoji.scenes import singles
from recipes.emoji.styles import STYLES, line_drawing, mosaic
from tests.recipes.emoji.tiny import drawn_glyphs, needs_font

COUNT = 20

OTHER_STYLE = 0.7
"""Share of emoji found among references in another style than theirs. Observed: 0.6 and less."""


def rendered(glyphs, seed, *, color=None):
    random = Random(seed)
    chosen = [scene for scene in singles(trained=True) if color is None or scene.color == color]
    scenes = random.sample(chosen, COUNT)
    return scenes, torch.stack([render(scene, draw_places(scene, random, ON_CELLS), glyphs) for scene in scenes])


@pytest.mark.parametrize("name", STYLES)
def test_renderings_in_a_style_are_above_plain_ones_and_these_are_not(name):
    style, (_, pictures) = STYLES[name], rendered(drawn_glyphs(), 1)
    styled, plain = in_style(style, style.apply(pictures), pictures), in_style(style, pictures, pictures)
    assert styled.above == 1
    assert styled.apart == 1
    assert styled.mean > plain.mean
    assert plain.above == pytest.approx(1 / COUNT)
    assert plain.apart == 0.5


def test_the_share_above_counts_what_exceeds_the_95th_percentile():
    usual = torch.arange(101.0)  # its 95th percentile is 95
    assert share_above(torch.tensor([94.0, 95.0, 95.5, 200.0]), usual) == 0.5


def test_all_styles_are_lines_in_tiles():
    _, pictures = rendered(drawn_glyphs(), 2)
    assert all_styles(pictures).equal(mosaic(line_drawing(pictures)))


@pytest.mark.slow
@needs_font
def test_adherence_tells_references_and_backgrounds_apart():
    glyphs = Glyphs()
    scenes, pictures = rendered(glyphs, 3, color="blue")
    lines = adherence(line_drawing(pictures), scenes, glyphs, line_drawing)
    assert lines.styled == 1
    assert lines.plain < OTHER_STYLE
    assert lines.color == 1
    asked = [replace(scene, color="red") for scene in scenes]
    plain = adherence(pictures, asked, glyphs, line_drawing)
    assert plain.plain == 1
    assert plain.styled < OTHER_STYLE
    assert plain.color == 0
