"""Cases of the web UI's wiki and of the examples in its prompt_parser.py."""

import pytest

from undertow.encoders.prompts import a1111
from undertow.encoders.prompts.resolve import composed, resolve
from undertow.encoders.prompts.tree import Break, Composed, Fragment, Tag, Text, fragments
from undertow.errors import PromptError


def pieces(text, **options):
    """Texts with weights, and BREAKs."""
    found = fragments(a1111.parse(text, **options).tree)
    return ["BREAK" if isinstance(part, Break) else (part.leaf.text, part.weight) for part in found]


def at(text, step, steps=10):
    (prompt, _), *_ = resolve(a1111.parse(text), step, steps)
    return "".join(part.leaf.text for part in fragments(prompt.tree) if isinstance(part, Fragment))


def schedule(text, steps=10):
    """The prompt of each step, as runs [last step counted from 1, prompt]."""
    runs = []
    for step in range(steps):
        prompt = at(text, step, steps)
        if runs and runs[-1][1] == prompt:
            runs[-1][0] = step + 1
        else:
            runs.append([step + 1, prompt])
    return runs


@pytest.mark.parametrize(("text", "expected"), [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", [
        ("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
        (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1),
    ]),
    ("a (word:1.5)", [("a ", 1.0), ("word", 1.5)]),
    ("a (word:0.25)", [("a ", 1.0), ("word", 0.25)]),
    ("a (word : 1.5 )", [("a ", 1.0), ("word ", 1.5)]),
    ("a (word:-1)", [("a ", 1.0), ("word", -1.0)]),
    (r"a \(word\)", [("a (word)", 1.0)]),
    ("[word]", [("word", 1 / 1.1)]),
    ("word:1.5)", [("word:1.5)", 1.0)]),
    ("a ) b ] c", [("a ) b ] c", 1.0)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
    ("\\", []),
    ("", []),
    ("a BREAK b", [("a", 1.0), "BREAK", ("b", 1.0)]),
    ("(a BREAK b:1.2) BREAKFAST", [("a", 1.2), "BREAK", ("b", 1.2), (" BREAKFAST", 1.0)]),
    ("BREAK BREAK", ["BREAK", "BREAK"]),
])  # fmt: skip
def test_emphasis(text, expected):
    found = pieces(text)
    assert [part if part == "BREAK" else part[0] for part in found if part[0]] == [
        part if part == "BREAK" else part[0] for part in expected
    ]
    weights = [part[1] for part in found if part != "BREAK" and part[0]]
    assert weights == pytest.approx([part[1] for part in expected if part != "BREAK"], rel=1e-12)


@pytest.mark.parametrize(("text", "expected"), [
    ("test", [[10, "test"]]),
    ("a [b:3]", [[3, "a "], [10, "a b"]]),
    ("a [b: 3]", [[3, "a "], [10, "a b"]]),
    ("a [[[b]]:2]", [[2, "a "], [10, "a b"]]),
    ("[(a:2):3]", [[3, ""], [10, "a"]]),
    ("a [b : c : 1] d", [[1, "a b  d"], [10, "a  c  d"]]),
    ("a[b:[c:d:2]:1]e", [[1, "abe"], [2, "ace"], [10, "ade"]]),
    ("a [unbalanced", [[10, "a unbalanced"]]),
    ("a [b:.5] c", [[5, "a  c"], [10, "a b c"]]),
    ("((a][:b:c [d:3]", [[3, "a]:b:c "], [10, "a]:b:c d"]]),
    ("[a|(b:1.1)]", [[n, "b" if n % 2 == 0 else "a"] for n in range(1, 11)]),
    ("[fe|]male", [[n, "male" if n % 2 == 0 else "female"] for n in range(1, 11)]),
    ("[fe|||]male", [[1, "female"], [4, "male"], [5, "female"], [8, "male"], [9, "female"], [10, "male"]]),
    ("[a::4]b", [[4, "ab"], [10, "b"]]),
    ("[a:b:0]", [[10, "b"]]),
    ("[a:b:-1]", [[10, "b"]]),
    ("[a:b:99]", [[10, "a"]]),
    ("[word:1.5]", [[10, ""]]),  # square brackets take no weight: this is word from behind the last step on
    ("[a:b:1.0]", [[10, "a"]]),  # a decimal point makes it a fraction
    ("[a:b:1]", [[1, "a"], [10, "b"]]),
    ("[a:b:c]", [[10, "a:b:c"]]),
    ("[a:b:2] | c", [[10, "a:b:2 | c"]]),  # an alternative outside of brackets switches editing off
    ("[a:b:2] \\", [[10, "a:b:2 "]]),
    (r"\[a:b:2]", [[10, "[a:b:2]"]]),
    ("(a [b:c:2]:1.2)", [[2, "a b"], [10, "a c"]]),
    ("[a (b:2]", [[10, "a b:2"]]),
])  # fmt: skip
def test_editing_and_alternation(text, expected):
    assert schedule(text) == expected


def test_the_example_at_the_top_of_the_tools_parser():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[ in background:0.25] [shoddy:masterful:0.5]"
    )
    assert schedule(text, 100) == [
        [25, "fantasy landscape with a mountain and an oak in foreground shoddy"],
        [50, "fantasy landscape with a lake and an oak in foreground in background shoddy"],
        [60, "fantasy landscape with a lake and an oak in foreground in background masterful"],
        [75, "fantasy landscape with a lake and an oak in background masterful"],
        [100, "fantasy landscape with a lake and a christmas tree in background masterful"],
    ]


def test_emphasis_reaches_into_editing():
    (prompt, _), *_ = resolve(a1111.parse("([(cat:2)|dog]:0.5) x"), 0, 2)
    assert [(part.leaf.text, part.weight) for part in fragments(prompt.tree)] == [("cat x", 1.0)]
    (prompt, _), *_ = resolve(a1111.parse("([(cat:2)|dog]:0.5) x"), 1, 2)
    assert [(part.leaf.text, part.weight) for part in fragments(prompt.tree)] == [("dog", 0.5), (" x", 1.0)]


@pytest.mark.parametrize(("text", "expected"), [
    ("a cat", [("a cat", 1.0)]),
    ("a cat AND a dog", [("a cat ", 1.0), (" a dog", 1.0)]),
    ("a cat :1.2 AND a dog AND a benz:.5", [("a cat", 1.2), (" a dog ", 1.0), (" a benz", 0.5)]),
    ("a cat :1.5", [("a cat", 1.5)]),
    ("a cat :-0.5 AND x", [("a cat", -0.5), (" x", 1.0)]),
    ("AND", [("", 1.0), ("", 1.0)]),
    ("SAND AND ANDES", [("SAND ", 1.0), (" ANDES", 1.0)]),
    ("(a AND b:2)", [("a ", 1.0), (" b:2)", 1.0)]),
])  # fmt: skip
def test_composition(text, expected):
    prompt = a1111.parse(text)
    parts = [
        ("".join(piece.leaf.text for piece in fragments(one.tree)), weight) for one, weight in resolve(prompt, 0, 1)
    ]
    assert parts == expected
    assert composed(prompt) == isinstance(prompt.tree, Composed) == (expected != [("a cat", 1.0)])


@pytest.mark.parametrize(("text", "said"), [
    ("photo, ratio 16:9", ["the 9 at the end of the prompt was read as the weight of its guidance, as A1111 reads it"]),
    ("photo, ratio 16:9 AND b", []),
    ("photo, ratio 16:9 lens", []),
    ("photo:1", []),
])  # fmt: skip
def test_a_number_at_the_end_that_may_not_have_been_meant_is_told(text, said):
    assert list(a1111.parse(text).notes) == said


def test_tags_are_taken_out():
    prompt = a1111.parse("a <lora:film:0.8:te=1> c<hypernet:x>at <3")
    assert prompt.tags == (
        Tag(kind="lora", arguments=("film", "0.8", "te=1")),
        Tag(kind="hypernet", arguments=("x",)),
    )
    assert pieces("a <lora:film:0.8:te=1> c<hypernet:x>at <3") == [("a  cat <3", 1.0)]


def test_without_emphasis_its_characters_are_text():
    text = r"a (b:1.2) \( BREAK [c:d:0.5]"
    for step, letter in ((0, "c"), (1, "d")):
        ((prompt, _),) = resolve(a1111.parse(text, emphasis=False), step, 2)
        assert fragments(prompt.tree) == [Fragment(Text(rf"a (b:1.2) \( BREAK {letter}"), 1.0)]


@pytest.mark.parametrize(("text", "position"), [
    ("a (b:1.2.3)", 5),
    ("<lora:x:1>a (b:.)", 15),
    ("a (b:" + "9" * 400 + ")", 5),
    ("a AND (b:..)", 9),
    ("(" * 65 + "a" + ")" * 65, 64),
    ("a [b:c:" + "9" * 400 + "]", 7),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(text, position):
    with pytest.raises(PromptError) as caught:
        a1111.parse(text)
    assert caught.value.position == position
    assert f"character {position}" in str(caught.value)
