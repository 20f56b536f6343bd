"""Cases of compel's documentation (doc/syntax.md) and of its own tests."""

import pytest

from undertow.encoders.prompts import compel
from undertow.encoders.prompts.tree import Blend, Joined, Swap, Tag, Text, Weighted, fragments
from undertow.errors import PromptError


def read(tree):
    return [(" ".join(part.leaf.text.split()), round(part.weight, 9)) for part in fragments(tree)]


def pieces(text):
    return read(compel.parse(text).tree)


PLUS, PLUS2, PLUS3 = 1.1, round(1.1**2, 9), round(1.1**3, 9)
MINUS, MINUS2, MINUS3 = 0.9, round(0.9**2, 9), round(0.9**3, 9)


@pytest.mark.parametrize(("text", "expected"), [
    ("", []),
    ("fire flames", [("fire flames", 1)]),
    ("fire (flames)", [("fire flames", 1)]),
    ("fire, flames , fire", [("fire, flames , fire", 1)]),
    ("cat hot-dog eating", [("cat hot-dog eating", 1)]),
    ("Dalí", [("Dalí", 1)]),
    ("(flames)0.5", [("flames", 0.5)]),
    ("(flames).attend(0.5)", [("flames", 0.5)]),
    ("flames.attend(0.5)", [("flames", 0.5)]),
    ('"flames".attend(0.5)', [("flames", 0.5)]),
    ("(fire flames)0.5", [("fire flames", 0.5)]),
    ("flames+", [("flames", PLUS)]),
    ('"flames"+', [("flames", PLUS)]),
    ("(flames).attend(+)", [("flames", PLUS)]),
    ("(flames)-", [("flames", MINUS)]),
    ("fire flames.attend(0.5)", [("fire", 1), ("flames", 0.5)]),
    ("(flowers)--- flames+++", [("flowers", MINUS3), ("flames", PLUS3)]),
    ("(pretty flowers)+, the flames are too hot", [("pretty flowers", PLUS), (", the flames are too hot", 1)]),
    ("flowers fire-- flames", [("flowers", 1), ("fire", MINUS2), ("flames", 1)]),
    ("a tall thin man picking apricots+", [("a tall thin man picking", 1), ("apricots", PLUS)]),
    ("a man (picking apricots+)++", [("a man", 1), ("picking", PLUS2), ("apricots", PLUS3)]),
    ("a man picking (apricots)1.1", [("a man picking", 1), ("apricots", 1.1)]),
    ("man (picking (apricots)1.3)1.1", [("man", 1), ("picking", 1.1), ("apricots", 1.43)]),
    ("fire (flames (trees)1.5)2.0", [("fire", 1), ("flames", 2.0), ("trees", 3.0)]),
    ("fire,flames+", [("fire,", 1), ("flames", PLUS)]),
    # Badly formed: text
    ("a badly formed +test prompt", [("a badly formed +test prompt", 1)]),
    ("a badly (formed +test prompt", [("a badly (formed +test prompt", 1)]),
    ("a badly (formed +test )prompt", [("a badly formed +test prompt", 1)]),
    ("(((a badly (formed +test )prompt", [("(((a badly formed +test prompt", 1)]),
    ("(a (ba)dly (f)ormed +test prompt", [("(a ba dly f ormed +test prompt", 1)]),
    ("hamburger ((kaiser roll))", [("hamburger kaiser roll", 1)]),
    ("(hot - dog) a.b+ c=d", [("(hot - dog) a.b+ c=d", 1)]),
    ("(a b, c).blend()", [("a b , c .blend()", 1)]),
    # Escapes
    (r"mountain \(man\)", [("mountain (man)", 1)]),
    (r"mountain (\(man)\)", [("mountain (man )", 1)]),
    (r"mountain (\(man\))+", [("mountain", 1), ("(man)", PLUS)]),
    (r"\"mountain\" (\(man\))+", [('"mountain"', 1), ("(man)", PLUS)]),
    (r"(\"mountain\")+ (\(man\))+", [('"mountain" (man)', PLUS)]),
    ('hairy ("mountain, man" with a (beard)2.0)+', [("hairy", 1), ("mountain , man with a", PLUS), ("beard", 2.2)]),
    (r'hairy ("mountain, \"man\"" with a b)+', [("hairy", 1), ('mountain , "man" with a b', PLUS)]),
])  # fmt: skip
def test_weights(text, expected):
    assert pieces(text) == expected


@pytest.mark.parametrize(("text", "parts", "weights"), [
    ('("mountain", "man").blend()', [[("mountain", 1)], [("man", 1)]], (1, 1)),
    ("(mountain, man).blend()", [[("mountain", 1)], [("man", 1)]], (1, 1)),
    ("((mountain), (tall man)).blend()", [[("mountain", 1)], [("tall man", 1)]], (1, 1)),
    ('("spider man", "robot mech").blend(1, 0.8)', [[("spider man", 1)], [("robot mech", 1)]], (1, 0.8)),
    ('("fire", "fire flames (hot)++", "hi").blend(0.7, 0.3, 1.0)',
     [[("fire", 1)], [("fire flames", 1), ("hot", PLUS2)], [("hi", 1)]], (0.7, 0.3, 1.0)),
    ('("fire").blend(0.7)', [[("fire", 1)]], (0.7,)),
    ('("fire", "  ").blend(0.7, 1)', [[("fire", 1)], []], (0.7, 1)),
    ('("fire", "  ,  ").blend(0.7, 1)', [[("fire", 1)], [(",", 1)]], (0.7, 1)),
    ('("((a badly (formed +test ").blend(1.0)', [[("((a badly (formed +test", 1)]], (1.0,)),
    ('("mountain, man, hairy", "face, teeth, eyes--").blend(1,-1)',
     [[("mountain , man , hairy", 1)], [("face , teeth ,", 1), ("eyes", MINUS2)]], (1, -1)),
])  # fmt: skip
def test_blend(text, parts, weights):
    tree = compel.parse(text).tree
    assert isinstance(tree, Blend)
    assert tree.normalize
    assert tree.weights == weights
    assert [read(part) for part in tree.parts] == parts


def test_blend_without_normalizing():
    tree = compel.parse('("a", "b").blend(1,-1,no_normalize)').tree
    assert tree == Blend(parts=(Text("a "), Text("b ")), weights=(1.0, -1.0), normalize=False)


@pytest.mark.parametrize(("text", "parts", "weights"), [
    ('("fire", "flames").and(1,1)', [[("fire", 1)], [("flames", 1)]], (1, 1)),
    ('("fire", "flames", "mountain man").and()', [[("fire", 1)], [("flames", 1)], [("mountain man", 1)]], (1, 1, 1)),
    ('("(fire)2.0", "flames-").and()', [[("fire", 2.0)], [("flames", MINUS)]], (1, 1)),
    ('("fire", "flames").add(2,1)', [[("fire", 1)], [("flames", 1)]], (2, 1)),
    ('("A dream, by Friedrich", "HQ").and()', [[("A dream , by Friedrich", 1)], [("HQ", 1)]], (1, 1)),
])  # fmt: skip
def test_and(text, parts, weights):
    tree = compel.parse(text).tree
    assert isinstance(tree, Joined)
    assert tree.weights == weights
    assert [read(part) for part in tree.parts] == parts


@pytest.mark.parametrize(("text", "original", "edited", "window"), [
    ("sun.swap(moon)", [("sun", 1)], [("moon", 1)], (0.2, 1.0)),
    ('"trees and houses".swap(flames)', [("trees and houses", 1)], [("flames", 1)], (0.2, 1.0)),
    ('("flames").swap("trees and houses")', [("flames", 1)], [("trees and houses", 1)], (0.2, 1.0)),
    ('().swap(in winter)', [], [("in winter", 1)], (0.2, 1.0)),
    ('"in winter".swap()', [("in winter", 1)], [], (0.2, 1.0)),
    ('"(fire (flames)0.5)0.5".swap("(trees)0.7 houses")',
     [("fire", 0.5), ("flames", 0.25)], [("trees", 0.7), ("houses", 1)], (0.2, 1.0)),
    ("cat.swap(dog, t_start=0.1, s_start=20)", [("cat", 1)], [("dog", 1)], (0.1, 1.0)),
    (r"hotdog.swap(h\(o\)tdog++, shape_freedom=0.5, t_end=0.6)", [("hotdog", 1)], [("h(o)tdog", PLUS2)], (0.2, 0.6)),
])  # fmt: skip
def test_swap(text, original, edited, window):
    prompt = compel.parse(text)
    tree = prompt.tree
    assert isinstance(tree, Swap)
    assert (read(tree.original), read(tree.edited), (tree.start, tree.end)) == (original, edited, window)
    assert "attention maps" in prompt.notes[0]


def test_swap_within_weights():
    tree = compel.parse("(riding a bicycle.swap(skateboard))++").tree
    assert isinstance(tree, Weighted)
    assert tree.weight == pytest.approx(1.1**2)
    assert tree.child.children[-1] == Swap(original=Text("bicycle "), edited=Text("skateboard "))


@pytest.mark.parametrize(("text", "tags", "rest"), [
    ("a cat withLora(film, 0.5)", [("film", "0.5")], [("a cat", 1)]),
    ("useLora(a) withLora(b, 2) cat", [("a", "1.0"), ("b", "2.0")], [("cat", 1)]),
    ("(a withLora(x) cat)+", [("x", "1.0")], [("a cat", PLUS)]),
    ("(withLora(x", [], [("(withLora(x", 1)]),
    ("(x withLora(y) b", [("y", "1.0")], [("(x b", 1)]),
])  # fmt: skip
def test_loras_are_tags(text, tags, rest):
    prompt = compel.parse(text)
    assert prompt.tags == tuple(Tag(kind="lora", arguments=arguments) for arguments in tags)
    assert read(prompt.tree) == rest


def test_loras_around_a_blend():
    prompt = compel.parse('withLora(x) ("a", "b").blend() withLora(y, 0.5)')
    assert isinstance(prompt.tree, Blend)
    assert [tag.arguments for tag in prompt.tags] == [("x", "1.0"), ("y", "0.5")]


@pytest.mark.parametrize(("text", "position"), [
    ('("a", "b").and(2)', 15),
    ('("a", "b").blend(1, 2, 3)', 17),
    ('("a", "b").blend(1, x)', 20),
    ('("a", "b").and(1, w=2)', 18),
    ('("a", "b").and() more', 17),
    ('("a,b", "b").and() more', 19),
    ('("a", "b").blend(1,1) more', 22),
    ('(a, "cat.swap(dog)").blend()', 0),
    ("a.swap(b, 2)", 10),
    ("a.swap(b, t_start=x)", 10),
    ("a (b)" + "9" * 400, 5),
    ("(" * 70 + "a" + ")" * 70, 65),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(text, position):
    with pytest.raises(PromptError) as caught:
        compel.parse(text)
    assert caught.value.position == position
