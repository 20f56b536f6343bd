"""Scenes become pictures: the glyph at its place over the color, and nothing else."""

from random import Random

import pytest
import torch

from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.render import (
    CELL,
    JITTER,
    ON_CELLS,
    PAIR_SIZES,
    SIDE,
    SINGLE_SIZES,
    Glyphs,
    Place,
    draw_places,
    render,
)
from recipes.emoji.scenes import RELATIONS, Scene
from tests.recipes.emoji.tiny import drawn_glyphs, needs_font
from undertow.errors import DataError

RINGING = 0.1
"""Lanczos' filter rings at edges: a faint color may stand where the coverage was cut to 0."""


@pytest.fixture(params=["drawn", pytest.param("font", marks=needs_font)])
def glyphs(request):
    return drawn_glyphs() if request.param == "drawn" else Glyphs()


def test_a_glyph_fills_its_square_on_the_longer_side(glyphs):
    for name in (EMOJI[0], "bicycle", "rocket"):
        for size in (24, 40, 56):
            glyph = glyphs.at(name, size)
            assert glyph.shape == (4, size, size)
            assert glyph.min() >= 0
            assert glyph.max() <= 1
            assert glyph[:3, glyph[3] == 0].max() <= RINGING, "premultiplied: no color where nothing is"
            seen = glyph[3] > 0
            assert size - 1 <= max(int(seen.any(0).sum()), int(seen.any(1).sum())) <= size


def test_the_background_is_plain_and_the_glyph_opaque(glyphs):
    scene = Scene(names=("red apple",), color="blue")
    picture = render(scene, [Place(size=40, left=20, top=4)], glyphs)
    color = torch.tensor(COLORS["blue"], dtype=torch.uint8)
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[4:44, 20:60] = False
    assert bool((picture[:, outside] == color[:, None]).all())
    solid = glyphs.at("red apple", 40)
    opaque = solid[3] == 1
    inside = picture[:, 4:44, 20:60][:, opaque]
    assert bool((inside == (255 * solid[:3, opaque]).round().to(torch.uint8)).all())
    assert opaque.float().mean() > 0.2


@pytest.mark.parametrize("relation", RELATIONS)
def test_each_of_two_stays_in_its_half(relation):
    scene = Scene(names=("crown", "skull"), color="pink", relation=relation)
    for seed in range(200):
        first, second = draw_places(scene, Random(seed))
        for place in (first, second):
            assert place.size in PAIR_SIZES
            assert min(place.left, place.top) >= 0
            assert max(place.left, place.top) + place.size <= SIDE
        before, behind = (first, second) if relation in ("left of", "above") else (second, first)
        if relation in ("left of", "right of"):
            assert before.left + before.size <= SIDE // 2 <= behind.left
        else:
            assert before.top + before.size <= SIDE // 2 <= behind.top


def test_one_alone_lies_anywhere_inside():
    scene = Scene(names=("crown",), color="pink")
    places = [draw_places(scene, Random(seed))[0] for seed in range(500)]
    assert {place.size for place in places} == set(SINGLE_SIZES)
    assert all(0 <= edge <= SIDE - place.size for place in places for edge in (place.left, place.top))
    assert any(place.left == 0 for place in places)
    assert any(place.left == SIDE - place.size for place in places)


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_stand_on_a_line_up_to_the_jitter(relation):
    scene = Scene(names=("crown", "skull"), color="pink", relation=relation)
    found = [place for seed in range(300) for place in draw_places(scene, Random(seed))]
    is_row = relation in ("left of", "right of")
    off = {(place.top if is_row else place.left) - (SIDE - place.size) // 2 for place in found}
    assert off == set(range(-JITTER, JITTER + 1))


def test_on_cells_one_alone_stands_within_a_cell_of_the_middle():
    scene = Scene(names=("crown",), color="pink")
    found = [draw_places(scene, Random(seed), ON_CELLS)[0] for seed in range(300)]
    for size, edges in ((48, {4, 8, 12}), (56, {0, 4, 8})):
        here = [place for place in found if place.size == size]
        assert {place.left for place in here} == {place.top for place in here} == edges


def test_a_glyph_lies_in_the_middle_of_its_square(glyphs):
    for name in ("bicycle", "rocket", "pencil", "banana"):
        seen = glyphs.at(name, 40)[3] > 0
        for line in (seen.any(0), seen.any(1)):
            places = line.nonzero()[:, 0]
            before, behind = int(places[0]), 39 - int(places[-1])
            assert abs(before - behind) <= 1


def test_an_emoji_is_drawn_at_its_place_and_nowhere_else(glyphs):
    color = torch.tensor(COLORS["green"], dtype=torch.uint8)[:, None, None]
    for name in ("red apple", "owl"):
        picture = render(Scene(names=(name,), color="green"), [Place(size=30, left=17, top=17)], glyphs)
        assert not bool((picture == color).all())
        picture[:, 17:47, 17:47] = color
        assert bool((picture == color).all())


@pytest.mark.parametrize("relation", [None, *RELATIONS])
def test_on_cells_every_place_is_one_that_recognition_knows_and_a_whole_cell(relation):
    names = ("crown",) if relation is None else ("crown", "skull")
    scene = Scene(names=names, color="pink", relation=relation)
    found = [place for seed in range(300) for place in draw_places(scene, Random(seed), ON_CELLS)]
    assert {place.size for place in found} <= set(SINGLE_SIZES if relation is None else PAIR_SIZES)
    assert all(edge % CELL == 0 for place in found for edge in (place.left, place.top))
    assert len({(place.size, place.left, place.top) for place in found}) > 3 * len(names)


@needs_font
def test_the_font_has_every_emoji():
    Glyphs().require()


def test_a_missing_font_is_told_before_any_work(tmp_path):
    with pytest.raises(DataError, match="apt install fonts-noto-color-emoji"):
        Glyphs(tmp_path / "none.ttf").require()
