"""The metric of the evaluation: what a picture shows is found for real renderings, noisy ones too, and only that."""

from random import Random

import pytest
import torch

from recipes.emoji.evaluate import Shares, agreement, kinds, measure, read_shares, write_shares
from recipes.emoji.names import COLORS
from recipes.emoji.recognize import background, recognize
from recipes.emoji.render import SIDE, Glyphs, draw_places, render
from recipes.emoji.scenes import Scene, draw_training_scene
from tests.recipes.emoji.tiny import drawn_glyphs, needs_font
from undertow.errors import DataError

pytestmark = pytest.mark.slow

NOISE = 25
"""Standard deviation in levels of 255: a grainy picture, in which a person still recognizes every emoji."""

SINGLE = Scene(names=("red apple",), color="blue")
PAIR = Scene(names=("crown", "skull"), color="pink", relation="left of")
BELOW = Scene(names=("owl", "key"), color="white", relation="below")


@pytest.fixture(scope="module", params=["drawn", pytest.param("font", marks=needs_font)])
def glyphs(request):
    return drawn_glyphs() if request.param == "drawn" else Glyphs()


def pictures_of(scenes, glyphs, seed=0):
    random = Random(seed)
    return torch.stack([render(scene, draw_places(scene, random), glyphs) for scene in scenes])


@pytest.mark.parametrize("noise", [0, NOISE])
def test_real_renderings_are_recognized(glyphs, noise):
    random = Random(1)
    scenes = [draw_training_scene(random) for _ in range(8)]
    pictures = pictures_of(scenes, glyphs)
    noisy = pictures + noise * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    found = recognize(noisy.round().clamp(0, 255).to(torch.uint8), scenes, glyphs)
    assert found.found == tuple(scene.names for scene in scenes)
    assert bool(found.right.all())
    assert bool(found.color.all())


def test_another_emoji_another_color_and_exchanged_places_are_wrong(glyphs):
    asked = [SINGLE, SINGLE, PAIR, PAIR, PAIR, PAIR, BELOW]
    shown = [
        Scene(names=("green apple",), color="blue"),
        Scene(names=("red apple",), color="purple"),
        Scene(names=("skull", "crown"), color="pink", relation="left of"),
        Scene(names=("crown", "skull"), color="pink", relation="right of"),
        Scene(names=("skull", "crown"), color="pink", relation="right of"),  # the same said differently
        Scene(names=("crown", "rocket"), color="pink", relation="left of"),  # half right
        Scene(names=("key", "owl"), color="white", relation="above"),
    ]
    found = recognize(pictures_of(shown, glyphs), asked, glyphs)
    assert found.right.tolist() == [False, True, False, False, True, False, True]
    assert found.color.tolist() == [True, False, True, True, True, True, True]
    assert found.found[0] == ("green apple",)
    assert found.found[2] == ("skull", "crown")
    assert found.found[5] == ("crown", "rocket")


def test_the_background_is_the_nearest_named_color():
    for name, color in COLORS.items():
        plain = torch.tensor(color, dtype=torch.uint8)[None, :, None, None].repeat(1, 1, SIDE, SIDE)
        disturbed = plain.clone()
        disturbed[:, :, : SIDE // 3] = 7  # an emoji that touches an edge
        assert background(plain) == background(disturbed) == [name]


def test_measuring_counts_shares_and_names_confusions(glyphs):
    kind = kinds(8)[0]
    wrong = Scene(names=("ghost",), color=kind.scenes[0].color)
    shown = [wrong, *kind.scenes[1:]]

    def draw(captions, seeds):
        assert list(captions) == [scene.caption for scene in kind.scenes]
        assert list(seeds) == list(range(8))
        return pictures_of(shown, glyphs)

    measured = measure(kind, draw, glyphs)
    assert measured.right == 7 / 8
    assert measured.color == 1
    assert measured.confusions(5) == [(kind.scenes[0].names[0], "ghost", 1)]


def test_shares_of_another_program_are_written_read_and_compared(glyphs, tmp_path):
    kind = kinds(4)[0]
    measured = measure(kind, lambda captions, seeds: pictures_of(kind.scenes, glyphs), glyphs)
    write_shares("other 1.0", [measured], tmp_path / "deep" / "shares.json")
    shares = read_shares(tmp_path / "deep" / "shares.json")
    assert shares == Shares(program="other 1.0", count=4, right=(1.0,), color=(1.0,))
    assert agreement([measured], shares) == 0
    assert agreement([measured], Shares(program="other", count=4, right=(0.98,), color=(0.75,))) == 0.25
    (tmp_path / "bad.json").write_text('{"right": 1}')
    with pytest.raises(DataError, match="measure_diffusers"):
        read_shares(tmp_path / "bad.json")
