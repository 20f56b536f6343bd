"""Emoji characters written out as words, for models that know emoji by their Unicode names."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import cache

# What only changes the look of the emoji before it or joins it to the next: variation selectors, skin tones, joiners,
# the keycap, tags. None of them is a word.
_MODIFIERS = re.compile("[\ufe0e\ufe0f\u200d\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
_LEFT_OUT = {
    "skin tones": re.compile("[\U0001f3fb-\U0001f3ff]"),
    "keycaps": re.compile("\u20e3"),
    "tags of flags": re.compile("[\U000e0020-\U000e007e]"),
}
"""Those of them that a picture would show."""

_SYMBOLS = 0x2100
"""Mathematical signs before this are typed as text: +, <, ±."""

_PICTOGRAPHS = range(0x1F000, 0x1FC00)
"""Where emoji newer than this Python's Unicode are."""


def spell_out(text: str, names: Collection[str], words: Collection[str]) -> tuple[str, dict[str, str]]:
    """The text with a name in place of each emoji, and which emoji became which.

    names: those that a model knows. An emoji has its Unicode name in lower case, with spaces for hyphens; where only
    the end of that is a known name and the model has no word for the rest, it is the known name: "book" for "open
    book". words: all that the model knows.
    """
    found: dict[str, str] = {}
    parts: list[str] = []
    for character in text:
        if _is_emoji(character):
            found[character] = _known_name(unicode_name(character), names, words)
            parts.append(f" {found[character]} ")
        else:
            parts.append(character)
    return (_MODIFIERS.sub("", "".join(parts)), found) if found else (text, found)


def left_out(text: str) -> list[str]:
    """What of the emoji in a text is in no name: skin tones and the like."""
    return [what for what, pattern in _LEFT_OUT.items() if pattern.search(text)]


@cache
def unicode_name(character: str) -> str:
    """Its Unicode name in lower case, with spaces for hyphens; its number where this Python knows no name."""
    return unicodedata.name(character, f"u {ord(character):x}").lower().replace("-", " ")


def characters(names: Iterable[str], words: Collection[str]) -> dict[str, str]:
    """The emoji of each name that has one: of several, the one whose own name it is, or else the first."""
    wanted = list(names)
    found: dict[str, str] = {}
    for character in map(chr, (*range(_SYMBOLS, 0x3300), *_PICTOGRAPHS)):
        if unicodedata.category(character) == "So":
            own = unicode_name(character)
            known = _known_name(own, wanted, words)
            if own in wanted:
                found[own] = character
            elif known in wanted:
                found.setdefault(known, character)
    return {name: found[name] for name in wanted if name in found}


def _is_emoji(character: str) -> bool:
    if ord(character) < 0x80 or _MODIFIERS.match(character):
        return False
    category = unicodedata.category(character)
    return (
        category == "So"
        or (category == "Sm" and ord(character) >= _SYMBOLS)
        or (category == "Cn" and ord(character) in _PICTOGRAPHS)
    )


def _known_name(name: str, names: Collection[str], words: Collection[str]) -> str:
    parts = name.split()
    for start in range(len(parts)):
        rest = " ".join(parts[start:])
        if rest in names and not set(parts[:start]) & set(words):
            return rest
    return name
