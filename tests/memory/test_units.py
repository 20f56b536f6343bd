"""Amounts of memory as they are typed and shown."""

import pytest

from undertow.errors import InvalidInput
from undertow.memory.units import parse_bytes
from undertow.shortage import size_in_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6GB", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("6 gb", 6 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1,5GB", 1_500_000_000),
        ("2TiB", 2 * 2**40),
        ("123456", 123456),
        ("10 kB", 10_000),
    ],
)
def test_amounts(text, count):
    """GB are powers of 1000 and GiB powers of 1024 (IEC 80000-13)."""
    assert parse_bytes("--budget", text) == count


@pytest.mark.parametrize("text", ["", "much", "6 lightyears", "-6GB", "6G6", "0GB", "0.1", "GB", "1e9"])
def test_what_is_no_amount_is_refused_with_an_example(text):
    with pytest.raises(InvalidInput, match=r"^--budget is .*; such as 6GB"):
        parse_bytes("--budget", text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (3_800_000, "3.8 MB"),
        (130_000_000, "130 MB"),
        (2_434_000_000, "2.43 GB"),
        (123_400_000_000, "123 GB"),
    ],
)
def test_amounts_are_shown_in_the_unit_of_budgets(count, text):
    assert size_in_words(count) == text
