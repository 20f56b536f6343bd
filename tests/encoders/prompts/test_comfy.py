"""Cases of ComfyUI's README and of what its parser does with them."""

import pytest

from undertow.encoders.prompts import comfy
from undertow.encoders.prompts.tree import Embedding, Fragment, Text, fragments
from undertow.errors import PromptError


def pieces(text):
    found = fragments(comfy.parse(text).tree, merge=False)
    return [(part.leaf.text if isinstance(part.leaf, Text) else part.leaf, part.weight) for part in found]


@pytest.mark.parametrize(("text", "expected"), [
    ("", []),
    ("good code", [("good code", 1.0)]),
    ("(good code:1.2) or (bad code:0.8)", [("good code", 1.2), (" or ", 1.0), ("bad code", 0.8)]),
    ("(good)", [("good", 1.1)]),
    ("((good))", [("good", 1.1 * 1.1)]),
    ("((good:1.2):1.5)", [("good", 1.2)]),  # a number counts alone
    ("((good) code:1.5)", [("good", 1.5 * 1.1), (" code", 1.5)]),
    ("(a (b:0.5) c:2)", [("a ", 2.0), ("b", 0.5), (" c", 2.0)]),
    (r"\(literal\)", [("(literal)", 1.0)]),
    (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
    ("[a] {b|c}", [("[a] {b|c}", 1.0)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a:b:1.2)", [("a:b", 1.2)]),
    ("(:1.2)", [(":1.2", 1.1)]),
    ("(a: 0.5 )", [("a", 0.5)]),
    ("()", []),
    ("(a", [("(a", 1.0)]),
    ("a) (b)", [("a) (b)", 1.0)]),  # the first that opens pairs with the one that closed too early
    ("a) ((b)", [("a) (", 1.0), ("b", 1.1)]),
    ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
    ("a BREAK b AND c [d:e:0.5]", [("a BREAK b AND c [d:e:0.5]", 1.0)]),
    ("(a)b", [("a", 1.1), ("b", 1.0)]),
])  # fmt: skip
def test_weights(text, expected):
    found = pieces(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected], rel=1e-12)


@pytest.mark.parametrize(("text", "expected"), [
    ("embedding:foo", [(Embedding("foo"), 1.0)]),
    ("a embedding:foo, b", [("a ", 1.0), (Embedding("foo"), 1.0), (", b", 1.0)]),
    ("(a embedding:foo.pt:1.2)", [("a ", 1.2), (Embedding("foo.pt"), 1.2)]),
    ("(embedding:foo)", [(Embedding("foo"), 1.1)]),
    ("notembedding:foo", [("notembedding:foo", 1.0)]),
    ("embedding:", [("embedding:", 1.0)]),
    # ComfyUI 0.3.64 splits at " embedding:" and "\nembedding:", and compares the beginning of what is between.
    ("aembedding:foo", [("aembedding:foo", 1.0)]),
    ("EMBEDDING:foo", [("EMBEDDING:foo", 1.0)]),
    ("a\tembedding:foo", [("a\tembedding:foo", 1.0)]),
    ("a\nembedding:foo b", [("a\n", 1.0), (Embedding("foo"), 1.0), (" b", 1.0)]),
])  # fmt: skip
def test_embeddings(text, expected):
    assert pieces(text) == expected


def test_equal_neighbors_are_tokenized_apart():
    assert fragments(comfy.parse("fire(fly:1.0)").tree, merge=False) == [Fragment(Text("fire")), Fragment(Text("fly"))]


@pytest.mark.parametrize(
    ("text", "position"), [("a (b:nan)", 5), ("(b:inf)", 3), ("x(((b:1e999)))", 6), ("(" * 70 + ")" * 70, 64)]
)
def test_what_cannot_be_read_is_refused_with_its_place(text, position):
    with pytest.raises(PromptError) as caught:
        comfy.parse(text)
    assert caught.value.position == position
