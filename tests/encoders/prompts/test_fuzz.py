"""No text brings a parser down: it is read, or refused with its place, and what is read can be encoded."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from undertow.encoders.prompts import DIALECTS, parse_prompt, resolve
from undertow.encoders.prompts.tree import Blend, Break, Joined, fragments
from undertow.errors import InvalidInput, PromptError

SYNTAX = [
    *'()[]:|\\",.+-=<> \naé😀',
    *("1.2", "3", ".5", "nan", "AND", " AND ", "BREAK", "<lora:x:1>", "embedding:", "b c"),
    *(".blend(", ".and(", ".swap(", ".attend(", "withLora(", ":1.2)", "(a:1.3)", "[a:b:0.5]", "[a|b]"),
    *('("a", "b").blend(1, 2)', '("a", "b").and()', "a.swap(b, t_start=0.3)"),
]
PROMPTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(SYNTAX), max_size=14).map("".join))


def leaves(tree):
    match tree:
        case Blend(parts=parts) | Joined(parts):
            return [leaf for part in parts for leaf in leaves(part)]
        case _:
            return fragments(tree)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=250, deadline=None)
@given(text=PROMPTS, emphasis=st.booleans())
@example(text="(" * 3000, emphasis=True)
@example(text="[" * 3000 + "]" * 3000, emphasis=True)
@example(text="((a:" * 500, emphasis=True)
@example(text='("' * 500, emphasis=True)
@example(text="\ud800", emphasis=True)
@example(text="a\x00b", emphasis=True)
def test_no_text_brings_a_parser_down(dialect, text, emphasis):
    try:
        prompt = parse_prompt(text, dialect, emphasis=emphasis)
    except PromptError as error:
        refused = 0 <= error.position <= len(text)
    except InvalidInput as error:
        refused = "surrogate" in str(error)
    else:
        check(prompt)
        return
    assert refused


def check(prompt):
    """Every step can be encoded."""
    for step in (0, 1, 4):
        for part, weight in resolve(prompt, step, 5):
            assert math.isfinite(weight)
            for leaf in leaves(part.tree):
                assert isinstance(leaf, Break) or math.isfinite(leaf.weight)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(text=st.text(alphabet="abc déß \n", max_size=30))
@settings(deadline=None)
def test_text_without_syntax_stays_itself(dialect, text):
    words = "".join(part.leaf.text for part in fragments(parse_prompt(text, dialect).tree))
    assert words.split() == text.split()


def test_deep_nesting_takes_no_exponential_time():
    """Each bracket is read once, though several rules try it."""
    for dialect in DIALECTS:
        parse_prompt("(a " * 60 + ")" * 59, dialect)
        parse_prompt("[a:" * 60 + "]" * 59, dialect)
