"""What may be asked for, how it is said, and which combinations training never has."""

import unicodedata
from collections import Counter
from itertools import combinations, permutations
from random import Random

import pytest

from recipes.emoji.evaluate import kinds
from recipes.emoji.names import COLORS, EMOJI, character
from recipes.emoji.scenes import (
    PAIRS_KEPT_OUT,
    RELATIONS,
    UP_TO_TWO,
    Mix,
    Scene,
    draw_pair_kept_out,
    draw_training_scene,
    is_trained_color,
    is_trained_pair,
    pairs_kept_out,
    singles,
    spoken,
    understood,
)
from recipes.emoji.text_to_image import with_unknown_word
from recipes.emoji.tokenizer import POSITIONS, known_words

DRAWN = [draw_training_scene(Random(seed)) for seed in range(2000)]


def test_captions_are_unicode_names():
    assert len(set(EMOJI)) == len(EMOJI) >= 100
    for name in EMOJI:
        assert len(character(name)) == 1
        official = unicodedata.name(character(name)).lower().replace("-", " ")
        assert official == name or name == "book"


def test_a_caption_says_what_stands_where():
    assert Scene(names=("red apple",), color="white").caption == "red apple on white background"
    pair = Scene(names=("crown", "skull"), color="pink", relation="above")
    assert pair.caption == "crown above skull on pink background"
    assert (pair.first_comes_first, pair.is_row) == (True, False)
    beside = Scene(names=("crown", "skull"), color="pink", relation="right of")
    assert (beside.first_comes_first, beside.is_row) == (False, True)


def test_one_color_of_each_emoji_is_kept_out():
    for name in EMOJI:
        assert sum(is_trained_color(name, color) for color in COLORS) == len(COLORS) - 1
    assert len(list(singles(trained=True))) == (len(COLORS) - 1) * len(EMOJI)
    assert len(list(singles(trained=False))) == len(EMOJI)
    assert {scene.color for scene in singles(trained=False)} == set(COLORS), "no color is always kept out"


def test_a_tenth_of_the_pairs_is_kept_out_in_either_order():
    kept_out = pairs_kept_out()
    pairs = len(EMOJI) * (len(EMOJI) - 1) / 2
    assert len(kept_out) / pairs == pytest.approx(PAIRS_KEPT_OUT, abs=0.02)
    for first, second in permutations(EMOJI[:12], 2):
        assert is_trained_pair(first, second) == is_trained_pair(second, first)


def test_training_never_has_what_is_kept_out():
    for scene in DRAWN:
        assert all(is_trained_color(name, scene.color) for name in scene.names)
        assert len(scene.names) == 1 or is_trained_pair(*scene.names)


def test_training_has_everything_else():
    ones = [scene for scene in DRAWN if len(scene.names) == 1]
    assert len(ones) / len(DRAWN) == pytest.approx(UP_TO_TWO.singles, abs=0.05)
    assert {scene.relation for scene in DRAWN} == {None, *RELATIONS}
    assert {name for scene in DRAWN for name in scene.names} == set(EMOJI)
    assert {scene.color for scene in DRAWN} == set(COLORS)


def test_of_three_no_two_are_a_pair_that_is_kept_out():
    drawn = [draw_training_scene(Random(seed), Mix(singles=0.3, triples=0.4)) for seed in range(500)]
    shares = Counter(len(scene.names) for scene in drawn)
    assert {count: shares[count] / len(drawn) for count in shares} == {
        1: pytest.approx(0.3, abs=0.08),  # standard deviation 0.02
        2: pytest.approx(0.3, abs=0.08),
        3: pytest.approx(0.4, abs=0.08),
    }
    for scene in drawn:
        assert all(is_trained_color(name, scene.color) for name in scene.names)
        assert all(is_trained_pair(*pair) for pair in combinations(scene.names, 2))


def test_three_are_said_one_after_the_other():
    three = Scene(names=("crown", "skull", "owl"), color="pink", relation="above")
    assert three.caption == "crown above skull above owl on pink background"
    longest = sorted(EMOJI, key=lambda name: len(name.split()))[-3:]
    words = Scene(names=tuple(longest), color="white", relation="right of").caption.split()
    assert len(words) + 2 + 3 + 1 <= POSITIONS, "with both marks, articles and a word that means nothing"


def test_pairs_that_are_measured_are_those_kept_out():
    for seed in range(200):
        scene = draw_pair_kept_out(Random(seed))
        assert not is_trained_pair(*scene.names)
        assert all(is_trained_color(name, scene.color) for name in scene.names)


def test_either_of_a_pair_may_be_named_first():
    drawn = [draw_pair_kept_out(Random(seed)).names for seed in range(400)]
    forward = sum(EMOJI.index(first) < EMOJI.index(second) for first, second in drawn)
    assert forward / len(drawn) == pytest.approx(0.5, abs=0.1)  # standard deviation 0.025


def test_prompts_are_the_same_every_time_and_none_repeats_before_all_are_used():
    trained, kept_out, pairs = kinds(300)
    assert kinds(300) == (trained, kept_out, pairs)
    assert all(len(kind.scenes) == 300 for kind in kinds(300))
    assert len(set(trained.scenes)) == 300
    assert set(kept_out.scenes[: len(EMOJI)]) == set(singles(trained=False))
    assert all(is_trained_color(scene.names[0], scene.color) for scene in trained.scenes)
    assert all(len(scene.names) == 2 for scene in pairs.scenes)
    assert [kind.least_right for kind in (trained, kept_out, pairs)] == [0.99, 0.99, 0.80]
    assert [kind.least_color for kind in (trained, kept_out, pairs)] == [0.98, 0.95, None]


def test_captions_are_understood_in_all_their_forms():
    random = Random(0)
    for _ in range(500):
        scene = draw_training_scene(random, Mix(triples=0.3))
        caption = with_unknown_word(spoken(scene, random), random)
        found = understood(caption)
        assert found is not None
        assert (found.names, found.relation) == (scene.names, scene.relation), caption
        assert found.color == (scene.color if "background" in caption else ""), caption
    assert understood("") is None


def test_places_are_counted_from_the_left_or_the_top():
    for relation in RELATIONS:
        scene = Scene(names=("owl", "key", "crown"), color="red", relation=relation)
        first = relation in ("left of", "above")
        assert scene.in_places == (("owl", "key", "crown") if first else ("crown", "key", "owl"))


def test_captions_are_varied_but_have_only_known_words_and_fit():
    scene = Scene(names=("owl", "unicorn face"), color="blue", relation="left of")
    said = Counter(spoken(scene, random) for random in map(Random, range(2000)))
    assert {caption: times / 2000 for caption, times in said.items()} == {
        "owl left of unicorn face on blue background": pytest.approx(0.8, abs=0.04),  # standard deviation 0.009
        "owl left of unicorn face": pytest.approx(0.1, abs=0.03),
        "an owl left of a unicorn face on a blue background": pytest.approx(0.1, abs=0.03),
    }
    words = set(known_words())
    for index, one in enumerate(DRAWN):
        caption = spoken(one, Random(index)).split()
        assert set(caption) <= words
        assert len(caption) <= POSITIONS - 2
