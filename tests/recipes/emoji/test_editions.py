"""The second edition: the same scenes at twice the size, three emoji to a picture, an autoencoder in two stages."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from recipes.emoji import autoencoder
from recipes.emoji import recipe as recipes
from recipes.emoji.editions import CRISP, FIRST, edition_of
from recipes.emoji.evaluate import kinds
from recipes.emoji.recipe import CRISP_RECIPE, Callbacks, autoencoder_stages
from recipes.emoji.recognize import recognize
from recipes.emoji.render import draw_places, render
from recipes.emoji.scenes import RELATIONS, Scene
from tests.recipes.emoji.tiny import SETTINGS, TINY, drawn_glyphs
from undertow.errors import DataError

CELLS = 16
"""To a side of the latents, in both editions."""


@pytest.mark.parametrize("relation", RELATIONS)
def test_each_of_several_stays_in_its_strip_of_the_picture(relation):
    for names in (("crown", "skull"), ("crown", "skull", "owl")):
        scene, share = Scene(names=names, color="pink", relation=relation), CRISP.side / len(names)
        for seed in range(60):
            for placement in (CRISP.anywhere, CRISP.on_cells):
                places = draw_places(scene, Random(seed), placement)
                in_order = places if relation in ("left of", "above") else places[::-1]
                for index, place in enumerate(in_order):
                    along, across = (place.left, place.top)[:: 1 if relation in ("left of", "right of") else -1]
                    assert index * share - 1 < along
                    assert along + place.size <= (index + 1) * share + 1
                    assert 0 <= across <= CRISP.side - place.size
                    assert place.size in placement.sizes[len(names) - 1]
                    assert along % placement.step == across % placement.step == 0


def test_both_editions_have_as_many_cells_and_the_same_places_on_them():
    assert CRISP_RECIPE.unet().sample_size == CELLS == replace(TINY, widths=(32,)).unet().sample_size
    small, large = FIRST.on_cells, CRISP.on_cells
    assert large.sizes[:2] == tuple(tuple(2 * size for size in sizes) for sizes in small.sizes)
    for scene in (Scene(names=("owl",), color="red"), Scene(names=("owl", "key"), color="red", relation="above")):
        for seed in range(40):
            once, twice = draw_places(scene, Random(seed), small), draw_places(scene, Random(seed), large)
            assert [(2 * place.size, 2 * place.left, 2 * place.top) for place in once] == [
                (place.size, place.left, place.top) for place in twice
            ]


def test_the_second_edition_trains_its_autoencoder_on_parts_and_then_on_whole_pictures(tmp_path, monkeypatch):
    recipe = replace(
        TINY,
        edition=CRISP,
        level_channels=(8, 8, 8, 8),
        crop=32,
        autoencoder=replace(SETTINGS, steps=1, batch_size=2),
        whole_pictures=replace(SETTINGS, steps=1, batch_size=2),
    )
    stages: list[str] = []
    monkeypatch.setattr(recipes, "HELD_OUT_PICTURES", 4)
    monkeypatch.setattr(autoencoder, "NORMALIZED_ON", 8)
    callbacks = Callbacks(on_stage=lambda name, total: stages.append(name))
    vae = autoencoder_stages(tmp_path, recipe, drawn_glyphs(), callbacks)
    assert stages == ["autoencoder", "whole pictures"]
    assert (vae.config.sample_size, vae.config.factor) == (128, 8)
    figures = [json.loads(line) for line in (tmp_path / "whole_pictures" / "psnr.jsonl").read_text().splitlines()]
    assert [figure["step"] for figure in figures] == [1]
    final = float((tmp_path / "whole_pictures" / "psnr.txt").read_text().removesuffix(" dB\n"))
    assert final == pytest.approx(figures[0]["psnr"], abs=0.01), "normalizing latents changes no reconstruction"


def test_an_edition_draws_pictures_of_its_size():
    for edition, side in ((FIRST, 64), (CRISP, 128)):
        scenes, pictures = edition.draw(Random(0), 5, drawn_glyphs(), edition.anywhere)
        assert len(scenes) == 5
        assert pictures.shape == (5, 3, side, side)


@pytest.mark.slow
def test_what_larger_pictures_show_is_recognized_and_three_are_told_apart():
    """Two thirds of the scenes as asked, and one whose last two emoji have changed places."""
    asked = [
        Scene(names=("crown",), color="white"),
        Scene(names=("skull", "owl"), color="pink", relation="above"),
        Scene(names=("key", "bell", "rocket"), color="blue", relation="right of"),
        Scene(names=("key", "bell", "rocket"), color="blue", relation="below"),
    ]
    shown = [*asked[:3], replace(asked[3], names=("key", "rocket", "bell"))]
    random, glyphs = Random(2), drawn_glyphs()
    drawn = [render(scene, draw_places(scene, random, CRISP.anywhere), glyphs, CRISP.side) for scene in shown]
    found = recognize(torch.stack(drawn), asked, glyphs)
    assert found.found == tuple(scene.names for scene in shown)
    assert found.right.tolist() == [True, True, True, False]
    assert bool(found.color.all())


def test_only_the_second_edition_is_measured_on_three():
    first, second = kinds(4, FIRST.mix), kinds(4, CRISP.mix)
    assert second[:3] == first, "prompts of both editions are the same"
    assert all(len(scene.names) == 3 for scene in second[3].scenes)
    assert (edition_of(64), edition_of(128)) == (FIRST, CRISP)
    with pytest.raises(DataError, match="64 and 128"):
        edition_of(256)
