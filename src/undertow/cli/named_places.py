"""Names of files inside options that have marks of their own: a file that exists is never cut at a mark in its name."""

from collections.abc import Callable, Sequence
from pathlib import Path


def is_place(text: str) -> bool:
    """Whether there is a file or folder of this name."""
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, ValueError):  # longer than names can be, or with a zero byte in it
        return False


def split_list(text: str) -> tuple[str, ...]:
    """The parts between commas; neighboring parts that together name a file are one."""
    parts, found, first = text.split(","), [], 0
    while first < len(parts):
        after = next(
            (end for end in range(len(parts), first + 1, -1) if is_place(",".join(parts[first:end]))), first + 1
        )
        found.append(",".join(parts[first:after]))
        first = after
    return tuple(found)


def split_pair(text: str, is_left: Callable[[str], bool] = is_place) -> tuple[str, str | None]:
    """What stands before and behind an equals sign; nothing behind it without one, or when all of it is left.

    Of several signs it is the one with the most that exists beside it: a left side and files, a left side, files; of
    equal ones the first. is_left: whether a text is a left side.
    """
    if is_left(text):
        return text, None
    places = [index for index, character in enumerate(text) if character == "="]
    if not places:
        return text, None
    pairs = [(text[:place], text[place + 1 :]) for place in places]
    return max(pairs, key=lambda pair: 2 * is_left(pair[0]) + all(map(is_place, split_list(pair[1]))))


def split_numbers(text: str) -> tuple[str, list[float]]:
    """What stands before the last at sign and the numbers behind it; no numbers for a file that has such a name."""
    source, mark, numbers = text.rpartition("@")
    values = as_numbers(numbers) if mark and not is_place(text) else []
    return (source, values) if values else (text, [])


def as_numbers(text: str) -> list[float]:
    """The numbers in a comma list; none when something else is in it."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def is_one_of(names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text is one of these."""
    return lambda text: text in names
