"""Styles for LoRAs: what they keep, what they change, and statistics that tell them from plain pictures."""

from random import Random

import pytest
import torch

from recipes.emoji.recognize import background, recognize, reduced
from recipes.emoji.render import ON_CELLS, Glyphs, draw_places, render
from recipes.emoji.scenes import draw_training_scene
from recipes.emoji.styles import INK, STYLES, TILES, line_drawing, mosaic, separation
from tests.recipes.emoji.tiny import drawn_glyphs, needs_font

LEAST_SEPARATION = 0.98
"""Observed: 0.989 for lines, of which some emoji have many, 1.0 for mosaics, against plain pictures and each other."""
UNDER_NOISE = 0.98
"""The same with noise of 12 of 255 on every pixel, more than a model leaves. Observed: 0.99 and more."""
RECOGNIZED = {"line drawing": 0.98, "mosaic": 0.9}
"""Share of styled pictures whose emoji are found among references in that style. Observed: 1.0, and 0.98 for mosaics,
whose tiles cut a reference in another way than a picture."""

COUNT = 40


@pytest.fixture(scope="module", params=["drawn", pytest.param("font", marks=needs_font)])
def glyphs(request):
    return drawn_glyphs() if request.param == "drawn" else Glyphs()


@pytest.fixture(scope="module")
def plain(glyphs):
    return drawn_scenes(glyphs)


def drawn_scenes(glyphs):
    random = Random(5)
    scenes = [draw_training_scene(random) for _ in range(COUNT)]
    return scenes, torch.stack([render(scene, draw_places(scene, random, ON_CELLS), glyphs) for scene in scenes])


def noisy(pictures):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + 12 * noise).round().clamp(0, 255).to(torch.uint8)


def twice(pictures):
    return pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)


def mean_difference(one, other):
    return float((one.float() - other.float()).abs().mean())


@pytest.mark.parametrize("name", STYLES)
def test_a_statistic_tells_its_style_from_the_others(plain, name):
    style, pictures = STYLES[name], plain[1]
    styled = style.statistic(style.apply(pictures))
    assert styled.min() >= 0
    assert styled.max() <= 1 + 1e-6
    others = [pictures, *(other.apply(pictures) for other in STYLES.values() if other is not style)]
    for other in others:
        assert separation(styled, style.statistic(other)) >= LEAST_SEPARATION


@needs_font
@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_captions_stay_true_and_noise_hides_no_style(name):
    glyphs, style = Glyphs(), STYLES[name]
    scenes, pictures = drawn_scenes(glyphs)
    styled = style.apply(pictures)
    assert separation(style.statistic(noisy(styled)), style.statistic(noisy(pictures))) >= UNDER_NOISE
    assert background(styled) == [scene.color for scene in scenes]
    found = recognize(styled, scenes, glyphs, style=style.apply)
    assert found.right.float().mean() >= RECOGNIZED[name]
    if name == "line drawing":
        assert recognize(styled, scenes, glyphs).right.float().mean() < 0.5, "plain references do not look like lines"


def test_lines_are_ink_and_stand_at_edges_of_paler_colors():
    picture = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    picture[:, :, 4:12, 4:12] = 20
    drawn = line_drawing(picture)[0]
    assert drawn[:, 0, 0].tolist() == [200] * 3
    assert drawn[:, 8, 8].tolist() == [110] * 3, "the inside is half as strong"
    assert drawn[:, 8, 4].tolist() == list(INK)
    assert drawn[:, 8, 3].tolist() == list(INK)
    assert line_drawing(picture[:, :, :4, :4])[0].eq(200).all(), "a plain picture has no lines"


@pytest.mark.parametrize("name", STYLES)
def test_a_style_looks_the_same_in_pictures_twice_as_large(name):
    style, pictures = STYLES[name], drawn_scenes(drawn_glyphs())[1]
    small, large = style.apply(pictures), style.apply(twice(pictures))
    assert mean_difference(reduced(large), small) < mean_difference(small, pictures) / 4
    assert separation(style.statistic(large), style.statistic(twice(pictures))) >= LEAST_SEPARATION


def test_parts_of_a_picture_have_lines_of_its_own_width():
    picture = torch.full((1, 3, 128, 128), 200, dtype=torch.uint8)
    picture[:, :, 40:88, 40:88] = 20
    part = slice(24, 104)
    assert line_drawing(picture[..., part, part], 128).equal(line_drawing(picture)[..., part, part])
    assert not line_drawing(picture[..., part, part], 64).equal(line_drawing(picture)[..., part, part])


def test_tiles_are_of_one_color_the_mean_of_what_they_cover(plain):
    pictures = plain[1]
    tile = pictures.shape[-1] // TILES
    tiles = mosaic(pictures).unfold(2, tile, tile).unfold(3, tile, tile).flatten(4)
    assert tiles.shape[2:4] == (TILES, TILES)
    assert tiles.eq(tiles[..., :1]).all()
    means = pictures.float().unfold(2, tile, tile).unfold(3, tile, tile).mean((4, 5))
    assert (tiles[..., 0].float() - means).abs().max() <= 0.51, "rounded to a byte"


def test_parts_of_pictures_have_the_tiles_of_the_whole(plain):
    pictures = plain[1]
    side, half = pictures.shape[-1], pictures.shape[-1] // 2
    assert mosaic(pictures[..., :half, :half], side).equal(mosaic(pictures)[..., :half, :half])


def test_separation_counts_pairs():
    assert separation(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert separation(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == 0
    assert separation(torch.tensor([1.0, 2.0]), torch.tensor([1.0])) == 0.75
