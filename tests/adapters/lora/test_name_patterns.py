"""Name patterns of PEFT's configs: what `re` finds, in time that grows with the name alone."""

import random
import re
import time

import pytest

from undertow.adapters.lora.name_patterns import NamePatterns, UnreadablePattern, Wildcard

ITEMS = ["a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "1"]


def test_patterns_match_as_in_peft(request):
    """`re.match(rf"(.*\\.)?({pattern})$", name)`, PEFT 0.18, `utils/other.py`, on random patterns and names."""
    draw = random.Random(request.node.name)
    matched = 0
    for _ in range(4000):
        pattern = "".join(draw.choice(ITEMS) + draw.choice(["", "", "?", "*", "+"]) for _ in range(draw.randint(1, 5)))
        name = "".join(draw.choice("ab.1") for _ in range(draw.randint(1, 8)))
        expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
        matched += expected
        assert Wildcard.parse(pattern).matches(name) is expected, (pattern, name)
    assert 400 < matched < 3600


def test_the_first_pattern_that_matches_counts():
    patterns = NamePatterns({"blocks.1.to_q": 1, "^blocks.*to_q$": 2, r"to\.q": 3, "to_q": 4, "unet.blocks.1.to_q": 5})
    names = {"blocks.1.to_q": 1, "unet.blocks.1.to_q": 1, "blocks.2.to_q": 2, "mid.to.q": 3, "mid.to_q": 4}
    assert {name: patterns.find(name) for name in names} == names
    assert patterns.find("mid.auto_q") is None
    assert patterns.find("to_q.mid") is None


@pytest.mark.parametrize("pattern", ["a*" * 8 + "b", ".*.*.*.*x", ".?" * 8 + "a" * 100])
def test_time_grows_with_the_name(pattern):
    """Ten times the name, about ten times the time; `re` would take 10,000 times as long for the second."""
    wildcard = Wildcard.parse(pattern)

    def seconds(length: int) -> float:
        started = time.perf_counter()
        wildcard.matches("a" * length)
        return time.perf_counter() - started

    assert min(seconds(20_000) for _ in range(3)) < 60 * min(seconds(2_000) for _ in range(3))


@pytest.mark.parametrize(
    "pattern", ["(a|aa)*", "a{1,9}", "a|b", "(?=a)", "a**", "*a", "[b-a]", "[a", "a*" * 9, "a" * 201]
)
def test_other_expressions_are_refused(pattern):
    with pytest.raises(UnreadablePattern):
        NamePatterns({pattern: 1})


def test_wildcards_are_few():
    NamePatterns({f"{index}.*": index for index in range(32)})
    with pytest.raises(UnreadablePattern, match="33 patterns with wildcards"):
        NamePatterns({f"{index}.*": index for index in range(33)})
