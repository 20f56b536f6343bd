"""The words that a small model knows: others are named, with near ones, wherever they stand in a prompt."""

import json

import pytest
import torch

from tests.encoders.minis import encoder_for
from undertow.checkpoints.files.words import read_vocabulary, write_vocabulary
from undertow.encoders.text_stack import TextStack
from undertow.encoders.vocabulary import Vocabulary
from undertow.errors import CorruptFile

VOCABULARY = Vocabulary(
    words=("a", "apple", "bear", "blue", "face", "green", "honeybee", "on", "red"),
    emoji=("red apple", "green apple", "bear face", "honeybee"),
    colors=("blue", "green"),
    relations=("left of",),
)


@pytest.fixture(scope="module")
def stack():
    return TextStack([encoder_for("clip_l")], vocabulary=VOCABULARY)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("appel", ["apple"]),
        ("apples", ["apple"]),
        ("zebra", []),
        ("bee", ["honeybee"]),
        ("redapple", ["red apple", "apple"]),
        ("bearface", ["bear face"]),
    ],
)
def test_near_words_are_those_that_look_alike(word, near):
    assert VOCABULARY.near(word) == near


def test_unknown_words_are_named_once_in_their_order_and_known_ones_are_not():
    assert VOCABULARY.unknown(["Zebra on an APPEL", "red zebra, on 3 apples!"]) == [
        "zebra",
        "an",
        "appel",
        "3",
        "apples",
    ]
    assert VOCABULARY.note(["A red apple on blue"]) is None
    assert VOCABULARY.note([""]) is None


def test_the_note_names_what_contains_a_near_word():
    note = VOCABULARY.note(["appel and zebra"])
    assert "'appel' (near: 'apple' as in red apple, green apple)" in note
    assert "'zebra'" in note
    assert "'zebra' (near" not in note
    assert "4 emoji" in note


@pytest.mark.parametrize(
    ("prompt", "dialect", "unknown"),
    [
        ("(red appel:1.3) on [zebra]", "a1111", ["appel", "zebra"]),
        ("[red:purple:3] apple AND a lion :2", "a1111", ["purple", "lion"]),
        ("(red apple:1.3)", "a1111", []),
        ("red apple++ and zebra", "compel", ["and", "zebra"]),
        ("(zebra:1.2) apple", "comfy", ["zebra"]),
    ],
)
def test_words_are_found_within_the_syntax_of_each_dialect(stack, prompt, dialect, unknown):
    steps = stack.encode_steps(prompt, 6, dialect=dialect)
    notes = {note for step in steps for one in step for note in one.encoding.notes}
    assert {word for word in unknown if any(f"'{word}'" in note for note in notes)} == set(unknown)
    assert bool(notes) == bool(unknown)


def test_an_embedding_is_no_unknown_word(stack):
    stack.add_embedding("my-style", torch.ones(1, 64))
    try:
        assert stack.encode("red apple my-style").notes == ()
    finally:
        stack.remove_embedding("my-style")
    assert "'my'; 'style'" in stack.encode("red apple my-style").notes[0]


def test_a_stack_without_a_vocabulary_says_nothing():
    assert TextStack([encoder_for("clip_l")]).encode("zebra").notes == ()


def test_it_travels_in_the_model_folder(tmp_path):
    assert read_vocabulary(tmp_path) is None
    write_vocabulary(VOCABULARY, tmp_path)
    assert read_vocabulary(tmp_path) == VOCABULARY


@pytest.mark.parametrize("change", [{"words": "red"}, {"emoji": [1]}, {"colors": None}])
def test_a_damaged_file_is_refused(tmp_path, change):
    write_vocabulary(VOCABULARY, tmp_path)
    content = json.loads((tmp_path / "words.json").read_text())
    (tmp_path / "words.json").write_text(json.dumps(content | change))
    with pytest.raises(CorruptFile, match=r"words\.json.*lists of words"):
        read_vocabulary(tmp_path)
