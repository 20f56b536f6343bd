"""The words that a small model knows: others are named, with near ones, wherever they stand in a prompt."""

import json
from dataclasses import replace

import pytest
import torch

from tests.encoders.minis import encoder_for
from undertow.checkpoints.files.words import read_vocabulary, write_vocabulary
from undertow.embedded import embedded_models
from undertow.emoji_names import characters, spell_out
from undertow.encoders.text_stack import TextStack
from undertow.errors import CorruptFile
from undertow.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    words=("a", "apple", "bear", "blue", "face", "green", "honeybee", "on", "red"),
    emoji=("red apple", "green apple", "bear face", "honeybee"),
    colors=("blue", "green"),
    relations=("left of", "below"),
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


def test_a_file_that_says_nothing_of_it_places_two(tmp_path):
    write_vocabulary(replace(VOCABULARY, together=3), tmp_path)
    content = json.loads((tmp_path / "words.json").read_text())
    assert content.pop("together") == 3
    assert read_vocabulary(tmp_path) == replace(VOCABULARY, together=3)
    (tmp_path / "words.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path) == VOCABULARY


@pytest.mark.parametrize("together", ["3", 1, 2.5, True, None])
def test_a_damaged_number_is_refused(tmp_path, together):
    write_vocabulary(VOCABULARY, tmp_path)
    content = json.loads((tmp_path / "words.json").read_text())
    (tmp_path / "words.json").write_text(json.dumps(content | {"together": together}))
    with pytest.raises(CorruptFile, match=r"words\.json.*together is .*, not a whole number of at least 2"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("change", [{"words": "red"}, {"emoji": [1]}, {"colors": None}])
def test_a_damaged_file_is_refused(tmp_path, change):
    write_vocabulary(VOCABULARY, tmp_path)
    content = json.loads((tmp_path / "words.json").read_text())
    (tmp_path / "words.json").write_text(json.dumps(content | change))
    with pytest.raises(CorruptFile, match=r"words\.json.*lists of words"):
        read_vocabulary(tmp_path)


def test_thousands_of_unknown_words_are_counted_and_a_few_compared():
    """16 KiB hold some 5,000 of them; difflib took a millisecond for each."""
    words = [f"w{number}x" for number in range(5000)]
    note = VOCABULARY.note([" ".join(words)])
    assert all(f"'{word}'" in note for word in words[:8])
    assert "'w8x'" not in note
    assert "; and 4,992 more; it knows" in note
    assert len(VOCABULARY.note(["a" * 16000])) < 300
    assert VOCABULARY.near("red apple".replace(" ", "") + "e" * 40) == []


@pytest.mark.parametrize(
    ("text", "spelled", "found"),
    [
        # unicodedata.name of Python: RED APPLE, DOG FACE, HEAVY BLACK HEART, JACK-O-LANTERN, OPEN BOOK, THUMBS UP SIGN
        ("a \U0001f34e on", "a red apple on", {"\U0001f34e": "red apple"}),
        ("\U0001f436\U0001f34e", "dog face red apple", {"\U0001f436": "dog face", "\U0001f34e": "red apple"}),
        ("\u2764\ufe0f", "heavy black heart", {"\u2764": "heavy black heart"}),
        ("\U0001f383", "jack o lantern", {"\U0001f383": "jack o lantern"}),
        ("\U0001f4d6", "book", {"\U0001f4d6": "book"}),
        ("\U0001f44d\U0001f3fd", "thumbs up sign", {"\U0001f44d": "thumbs up sign"}),
        ("\U0001f468\u200d\U0001f467", "man girl", {"\U0001f468": "man", "\U0001f467": "girl"}),
        ("\U0001faff", "u 1faff", {"\U0001faff": "u 1faff"}),  # not assigned before Unicode 17
        ("caf\u00e9 + 1 < 2 \u00b1", "caf\u00e9 + 1 < 2 \u00b1", {}),
    ],
)
def test_emoji_characters_are_read_by_their_names(text, spelled, found):
    names = ("red apple", "dog face", "heavy black heart", "jack o lantern", "book")
    given, map_ = spell_out(text, names, {"red", "black"})
    assert (" ".join(given.split()), map_) == (spelled, found)


def test_a_prompt_of_emoji_is_the_prompt_of_their_names(stack):
    emoji, words = (
        stack.encode(text, dialect="a1111") for text in ("(\U0001f34e:1.3) on blue", "(red apple:1.3) on blue")
    )
    assert torch.equal(emoji.context, words.context)
    assert emoji.notes == ("emoji are read by their names: \U0001f34e as 'red apple'",)
    assert words.notes == ()
    unknown = stack.encode("a \U0001f993").notes
    assert unknown[0] == "emoji are read by their names: \U0001f993 as 'zebra face'"
    assert "'zebra'" in unknown[1]


def test_without_a_vocabulary_emoji_stay_what_the_tokenizer_makes_of_them():
    plain = TextStack([encoder_for("clip_l")])
    assert not torch.equal(plain.encode("\U0001f34e").context, plain.encode("red apple").context)


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("red apple and bear face and honeybee", ["red apple", "bear face", "honeybee"]),
        ("apple and bear", ["apple", "bear"]),
        ("green apple on green", ["green apple"]),
        ("a face on blue", []),
    ],
)
def test_things_are_told_by_names_and_nouns(text, things):
    many = replace(VOCABULARY, emoji=(*VOCABULARY.emoji, "cat face", "dog face", "fox face"))
    assert many.things(text) == things


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("red apple", False),
        ("red apple left of honeybee on blue", False),
        ("honeybee below green apple", False),
        ("red apple and honeybee", True),
        ("red apple honeybee", True),
        ("red apple left of honeybee, bear face", True),
    ],
)
def test_what_cannot_be_placed_is_told(stack, text, told):
    note = "this model draws one thing, or two with left of or below between their names, as in 'red apple"
    assert any(one.startswith(note) for one in stack.encode(text).notes) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("red apple left of honeybee left of bear face on blue", False),
        ("red apple left of honeybee on blue", False),
        ("red apple left of honeybee below bear face", True),
        ("red apple left of and below honeybee", True),
        ("red apple left of honeybee and bear face", True),
        ("red apple left of honeybee left of bear face left of green apple", True),
    ],
)
def test_a_model_that_learned_three_things_places_three(text, told):
    note = replace(VOCABULARY, together=3).placement_note(text)
    assert (note is not None) == told
    if note:
        assert "one thing, or two or three with left of or below between their names, the same each time, as" in note


def test_the_embedded_model_places_three():
    known = read_vocabulary(embedded_models()["emoji"])
    assert known.placement_note("red apple left of dog face left of rocket on blue background") is None


def test_things_that_are_named_again_are_told_once():
    """Two of a kind cannot be placed either."""
    note = VOCABULARY.placement_note("red apple, red apple and honeybee, honeybee")
    assert note is not None
    assert note.endswith("; of red apple, honeybee it may draw only one")


def test_every_emoji_of_the_embedded_model_has_its_character():
    known = read_vocabulary(embedded_models()["emoji"])
    found = characters(known.emoji, known.words)
    assert list(found) == list(known.emoji)
    assert found["red apple"] == "\U0001f34e"
    assert all(known.spelled(character)[0].strip() == name for name, character in found.items())


def test_what_of_an_emoji_is_in_no_name_is_told(stack):
    """Skin tones, the keycap of 1 and the tags of England's flag (Unicode's emoji-sequences.txt)."""
    toned = stack.encode("a \U0001f44d\U0001f3fd on blue").notes[0]
    assert toned.endswith("as 'thumbs up sign'; skin tones are left out")
    several = "\U0001f44d\U0001f3fd 1\ufe0f\u20e3 \U0001f3f4\U000e0067\U000e0062\U000e007f"
    assert "; skin tones and keycaps and tags of flags are left out" in stack.notes_on([several])[0]
    joined = "\U0001f468\u200d\U0001f467\ufe0f"
    assert "left out" not in stack.notes_on([joined])[0]


def test_captions_are_read_and_told_as_prompts_are(stack):
    captions = ["a \U0001f34e on blue", "red apple", "a zebra on blue", "zebra"]
    emoji, unknown = stack.notes_on(captions)
    assert emoji == "emoji are read by their names: \U0001f34e as 'red apple'"
    assert unknown.startswith("never learned by this model: 'zebra';")
    assert stack.notes_on(["red apple on blue"]) == ()
    assert stack.spelled("a \U0001f34e").split() == ["a", "red", "apple"]
    plain = TextStack([encoder_for("clip_l")])
    assert plain.notes_on(captions) == ()
    assert plain.spelled("\U0001f34e") == "\U0001f34e"
