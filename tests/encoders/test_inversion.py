"""Names of textual inversions in a text: whole words, the longest first, whatever their case."""

import pytest
import torch

from undertow.encoders.inversion import Inversions
from undertow.encoders.prompts.tree import Embedding, Text


@pytest.fixture
def known() -> Inversions:
    inversions = Inversions({"clip_l": 4}, 75)
    for name in ("cat", "cat eye", "cat-eye 2", "<style>"):
        inversions.add(name, torch.ones(2, 4))
    return inversions


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat here", [Text("a "), Embedding("cat"), Text(" here")]),
        ("Cat Eye", [Embedding("cat eye")]),
        ("cat-eye 2, cat", [Embedding("cat-eye 2"), Text(", "), Embedding("cat")]),
        ("cats, concat", [Text("cats, concat")]),
        ("in <STYLE>", [Text("in "), Embedding("<style>")]),
        ("catcat eye", [Text("catcat eye")]),
    ],
)
def test_known_names_are_taken_out_of_the_text(known, text, parts):
    assert known.split(text) == parts


def test_a_name_may_come_with_a_file_s_suffix(known):
    assert known.find("CAT.safetensors") == known.find(" cat.pt ") == known.find("cat.bin") == "cat"
    assert known.find("dog") is None
    assert known.find("cat.ckpt") is None


def test_every_change_is_a_new_revision(known):
    before = known.revision
    known.remove("Cat")
    assert known.revision == before + 1
    assert known.split("cat") == [Text("cat")]
    known.add("cat", torch.ones(4))
    assert known.revision == before + 2
    assert known.vectors("cat", "clip_l").shape == (1, 4)
