"""What few steps cost: distances and shares of pictures that are known, and the page."""

from dataclasses import replace
from random import Random

import pytest
import torch

from recipes.emoji.__main__ import VERBS
from recipes.emoji.editions import CRISP, FIRST
from recipes.emoji.evaluate import Measured, kinds
from recipes.emoji.few_steps import FewSteps, nearest_rendering, recall, spread
from recipes.emoji.few_steps_page import comparison
from recipes.emoji.recognize import Recognized
from recipes.emoji.render import Place, draw_places, places_alone, render
from recipes.emoji.scenes import Scene
from recipes.emoji.sections import NO_NOTES, NOTES_SECTION, find_section
from tests.recipes.emoji.tiny import DrawnGlyphs, drawn_glyphs, trained_run
from undertow.cli import main

OWL = Scene(names=("owl",), color="blue")


def measured(right, names):
    kind = replace(kinds(1)[0], scenes=tuple(Scene(names=(name,), color="red") for name in names))
    found = Recognized(found=(), right=torch.tensor(right), color=torch.tensor(right))
    return Measured(kind=kind, pictures=torch.zeros(len(names), 3, 4, 4, dtype=torch.uint8), recognized=found)


@pytest.mark.parametrize("edition", [FIRST, CRISP])
def test_places_alone_are_those_that_are_drawn(edition):
    random = Random(0)
    drawn = {draw_places(OWL, random, edition.on_cells)[0] for _ in range(800)}
    assert drawn == set(places_alone(edition.on_cells))


def test_a_training_rendering_is_its_own_nearest_and_brighter_pictures_are_as_far_as_they_are_brighter():
    place = places_alone(FIRST.on_cells)[3]
    picture = render(OWL, (place,), drawn_glyphs())[None]
    assert nearest_rendering(picture, OWL, FIRST, drawn_glyphs()) == 0
    brighter = picture.clamp(max=235) + 20
    far = nearest_rendering(brighter, OWL, FIRST, drawn_glyphs())
    assert 15 < far <= 20
    elsewhere = render(OWL, (Place(size=place.size, left=1, top=2),), drawn_glyphs())[None]
    assert nearest_rendering(elsewhere, OWL, FIRST, drawn_glyphs()) > 1


def test_the_spread_is_the_mean_distance_of_two_pictures():
    levels = torch.tensor([10, 20, 50], dtype=torch.uint8)
    assert spread(levels[:, None, None, None].expand(3, 3, 8, 8)) == pytest.approx((10 + 40 + 30) / 3)


def test_recall_counts_every_emoji_once():
    assert recall(measured([True, True, True, False], ["owl", "owl", "owl", "key"])) == 0.5


def test_students_are_compared_with_their_teacher():
    teacher = FewSteps(
        name="teacher",
        steps=20,
        seconds=0.5,
        kinds=(measured([True, True, True, False], ["owl"] * 4),),
        recall=0.75,
        spread=40.0,
        nearest=30.0,
    )
    student = replace(
        teacher, name="student", steps=4, kinds=(measured([True, False, True, False], ["owl"] * 4),), spread=42.0
    )
    first, second = comparison([teacher, student]).splitlines()[2:]
    assert first == "| teacher | 20 | 75.0% | 75.0% | 40.0 | 30.0 | 0.500 |"
    assert second == "| student | 4 | 50.0% (67%) | 75.0% (100%) | 42.0 (105%) | 30.0 (100%) | 0.500 |"


def test_the_steps_have_to_be_numbers(capsys):
    for steps in ("many", "4,0", ""):
        assert main(["few-steps", "--steps", steps], VERBS) == 2
        assert "--steps" in capsys.readouterr().err


@pytest.mark.slow
def test_the_verb_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recipes.emoji.render.Glyphs", DrawnGlyphs)
    monkeypatch.setattr("recipes.emoji.few_steps.CAPTIONS", 2)
    monkeypatch.setattr("recipes.emoji.few_steps.SEEDS", 2)
    model = str(trained_run() / "model")
    arguments = ["--model", model, "--teacher", model, "--steps", "2,1", "--teacher-steps", "3", "--prompts", "2"]
    assert main(["few-steps", *arguments, "--out", str(tmp_path)], VERBS) == 0
    text = (tmp_path / "turbo.md").read_text()
    assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith(("| teacher", "| student"))] == [
        "3",
        "2",
        "1",
    ]
    assert (tmp_path / "turbo.png").is_file()
    assert find_section(text, NOTES_SECTION) == NO_NOTES
    assert "written: " in capsys.readouterr().out
