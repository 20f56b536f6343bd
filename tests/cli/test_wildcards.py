"""Choices within prompts: which there are, how often each is made, and what is refused."""

from collections import Counter

import pytest

from undertow.cli.wildcards import Wildcards, has_choices
from undertow.errors import InvalidInput


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pets").mkdir()
    (tmp_path / "animal.txt").write_text("# what lives here\ndog\n\n  cat\n{red|blue} bird\n")
    (tmp_path / "pets" / "small.txt").write_text("mouse\n")
    (tmp_path / "pets" / "two.txt").write_text("hen\nowl\n")
    (tmp_path / "both.txt").write_text("__pets/small__ and __animal__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    (tmp_path / "twice.txt").write_text("__twice__ __twice__\n")
    return tmp_path


def drawn(text, folder=None, count=400, seed=1):
    chooser = Wildcards(folder=folder, seed=seed)
    return Counter(chooser.chosen(text, picture) for picture in range(count))


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("a {red|green} apple", {"a red apple", "a green apple"}),
        ("{|very }small", {"small", "very small"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{2$$a|b|c}", {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{5$$a|b}", {"a, b", "b, a"}),
        # Ranges and file patterns: docs/SYNTAX.md of dynamicprompts.
        ("{1-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{-2$$+$$a|b|c}", {"a", "b", "c", "a+b", "a+c", "b+a", "b+c", "c+a", "c+b"}),
        ("{2-$$a|b}", {"a, b", "b, a"}),
        ("{3-9$$a|b}", {"a, b", "b, a"}),
        ("{2$$__pets/two__}", {"hen, owl", "owl, hen"}),
        ("__pets/*__", {"mouse", "hen", "owl"}),
        ("__pets/s*l__", {"mouse"}),
        ("__**/two__", {"hen", "owl"}),
        ("__pets/**__", {"mouse", "hen", "owl"}),
        ("{0::a|b}", {"b"}),
        ("__animal__", {"dog", "cat", "red bird", "blue bird"}),
        ("{__pets/small__|x}", {"mouse", "x"}),
        ("__both__", {"mouse and dog", "mouse and cat", "mouse and red bird", "mouse and blue bird"}),
        # What is no choice is text, also in the syntax of A1111 and NovelAI.
        ("(a:1.2) [b|c] {{d}} | {e", {"(a:1.2) [b|c] {{d}} | {e"}),
        (r"\{a|b\}", {"{a|b}"}),
        ("snake__case _a_ ____ {x", {"snake__case _a_ ____ {x"}),
    ],
)
def test_all_choices_are_made_and_no_others(folder, text, results):
    assert set(drawn(text, folder)) == results


def test_options_are_equally_frequent_unless_they_are_weighted():
    even, uneven = drawn("{a|b}", count=2000), drawn("{3::a|b}", count=2000)
    assert 900 < even["a"] < 1100  # binomial: 1000 +- 22
    assert 1420 < uneven["a"] < 1580  # 1500 +- 19


def test_the_seed_decides_and_each_picture_and_text_has_its_own():
    text = "{a|b|c|d|e|f|g|h}" * 4
    first, same, other = (Wildcards(seed=seed).chosen(text, 3) for seed in (1, 1, 2))
    assert first == same != other
    assert Wildcards(seed=1).chosen(text, 4) != first
    assert Wildcards(seed=1).chosen(text, 3, of="negative prompt") != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__animals__", "__animals__ is in the prompt, expected a file animals.txt in .*; did you mean animal?"),
        ("__x__", "it has animal, both, empty"),
        ("__../secret__", r"expected a file ../secret.txt"),
        ("__empty__", "it is empty"),
        ("__empty*__", "expected a file in .* that matches and has lines"),
        ("__../*__", r"expected a file ../\*.txt"),
        ("a {b|c, {d|e}", r"wildcards is '\{b\|c, ', which is not closed, expected a } behind it"),
        ("__loop__", "more than 16 within one another"),
        ("__twice__", "more than 16 within one another"),
        ("{" * 20 + "a|b" + "}" * 20, "more than 16 braces"),
        ("{0::a|0::b}", "options that all weigh 0"),
    ],
)
def test_what_cannot_be_chosen_is_refused(folder, text, message):
    with pytest.raises(InvalidInput, match=message):
        Wildcards(folder=folder).chosen(text, 0)


def test_a_result_is_no_longer_than_a_prompt(folder):
    (folder / "long.txt").write_text("b" * 9000 + "\n")
    with pytest.raises(InvalidInput, match="at most 16,384 bytes"):
        Wildcards(folder=folder).chosen("__long____long__", 0)


def test_without_a_folder_names_are_refused_and_a_folder_must_be_one(tmp_path):
    with pytest.raises(InvalidInput, match="give it by --wildcards"):
        Wildcards().chosen("__animal__", 0)
    with pytest.raises(InvalidInput, match=r"a folder with \.txt files"):
        Wildcards(folder=tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "found"), [("{a|b}", True), ("x __y__", True), ("{a}", False), ("[a|b]", False), ("a__b", False)]
)
def test_a_text_with_choices_is_told(text, found):
    assert has_choices(text) == found


@pytest.mark.parametrize("name", ["__secret__", "__*__"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "secret").write_text("word")
    (tmp_path / "choices").mkdir()
    (tmp_path / "choices" / "secret.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match="a link that leads out of it"):
        Wildcards(folder=tmp_path / "choices").chosen(name, 0)
