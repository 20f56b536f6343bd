"""Prompts written to exhaust a parser: time grows with their length and not with its square, nothing recurses out, and
what is too much is refused."""

import json
import subprocess
import sys

import pytest

from tests.encoders.minis import stack_for
from undertow import GenerationRequest, Region
from undertow.encoders.emphasis import MAX_LIGHT
from undertow.encoders.prompts import DIALECTS, parse_prompt
from undertow.encoders.prompts.source import MAX_PARTS
from undertow.encoders.prompts.tree import fragments
from undertow.errors import InvalidInput, PromptError
from undertow.limits import PROMPT_BYTES


def test_time_grows_with_the_length_and_not_with_its_square():
    """Measured in a process of its own, where annotations are not checked."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.encoders.prompts.growth"], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == {"slow": []}


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        (" AND ".join(["a"] * 101), "a1111"),
        ("(" + ", ".join(['"a"'] * 101) + ").blend()", "compel"),
        ("(" + ", ".join(['"a"'] * 101) + ").and()", "compel"),
    ],
)
def test_a_prompt_is_made_of_a_hundred_at_most(text, dialect):
    assert MAX_PARTS == 100
    with pytest.raises(PromptError, match="at most 100 prompts in one"):
        parse_prompt(text, dialect)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("|" + "(a" * 65, "a1111"),
        ("|" + "[a" * 65, "a1111"),
        ("a.swap(" * 2000, "compel"),
        ("a" + "+" * 8000, "compel"),
    ],
)
def test_what_is_nested_too_deep_or_too_heavy_is_refused_and_quoted_shortly(text, dialect):
    with pytest.raises(PromptError, match="at most") as refused:
        parse_prompt(text, dialect)
    assert len(str(refused.value)) < 200


def test_a_hundred_texts_are_weakened_at_most():
    """compel reads the prompt once more for each of them."""
    text = " ".join(f"({word})0.{word + 100}" for word in range(MAX_LIGHT + 1))
    with pytest.raises(InvalidInput, match="101 different texts', expected at most 100"):
        stack_for("clip_l").encode(text, dialect="compel")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sixteen_kibibytes_are_read_and_no_more(dialect):
    longest = "é" * (PROMPT_BYTES.usual // 2)
    assert PROMPT_BYTES.usual == 16384
    assert fragments(parse_prompt(longest, dialect).tree)
    with pytest.raises(InvalidInput, match="prompt is 16,385 bytes long, expected at most 16,384"):
        parse_prompt(longest + "a", dialect)


def test_the_limit_is_set_by_a_variable(monkeypatch):
    monkeypatch.setenv(PROMPT_BYTES.variable, "20000")
    assert parse_prompt("a" * 20000)
    with pytest.raises(InvalidInput, match="20,001 bytes long, expected at most 20,000"):
        parse_prompt("a" * 20001)
    monkeypatch.setenv(PROMPT_BYTES.variable, "many")
    with pytest.raises(InvalidInput, match="UNDERTOW_MAX_PROMPT_BYTES is 'many', expected a whole number"):
        parse_prompt("a")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_request_is_refused_before_anything_is_loaded(name):
    with pytest.raises(InvalidInput, match=f"^{name} is 16,385 bytes long"):
        GenerationRequest(**{"prompt": "", name: "a" * 16385})


def test_so_is_a_region():
    with pytest.raises(InvalidInput, match=r"^region\.prompt is 16,385 bytes long"):
        Region(prompt="a" * 16385, box=(0, 0, 1, 1))
