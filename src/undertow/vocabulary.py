"""The words that a small model was trained with, and what to say about others."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from undertow.emoji_names import characters, left_out, spell_out

NEAR = 0.7
"""Least similarity of a suggestion, as difflib measures it: "appel" and "apple" have 0.8, "zebra" and "bear" 0.4."""
SAME = 0.9
"""Least similarity of a whole name."""

SUGGESTIONS = 3
NAMES_SHOWN = 3

WORDS_SHOWN = 8
"""Unknown words that a note names; comparing each with all names takes time that grows with both."""

SHARED = 3
"""Names that may end in one word while it still stands for a thing, as "apple" does and "face" does not."""

LONGEST_WORD = 40
"""Characters of a word that can be like a known one."""

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a model can be asked for. words: all that its captions had; the rest by their roles: the names of what it
    draws, the colors it puts behind them, and how two of them stand to each other. together: how many things at most
    its captions named, each in the same relation to the next."""

    words: tuple[str, ...]
    emoji: tuple[str, ...]
    colors: tuple[str, ...]
    relations: tuple[str, ...]
    together: int = 2

    def unknown(self, texts: Iterable[str], known: Collection[str] = ()) -> list[str]:
        """The words that training never had, in their order, each once. known: names that have a meaning all the same,
        as those of textual inversions do."""
        said = dict.fromkeys(word for text in texts for word in _words(text))
        meaningful = {*self.words, *(word for name in known for word in _words(name))}
        return [word for word in said if word not in meaningful]

    def near(self, word: str) -> list[str]:
        """Names that look like this word when written without spaces, known words that look like it, and words that it
        is a part of; best first."""
        if len(word) > LONGEST_WORD:
            return []
        joined = {name.replace(" ", ""): name for name in self.emoji if " " in name}
        whole = [joined[name] for name in get_close_matches(word, joined, n=SUGGESTIONS, cutoff=SAME)]
        alike = get_close_matches(word, self.words, n=SUGGESTIONS, cutoff=NEAR)
        around = [known for known in self.words if len(word) > 2 and word in known]
        return list(dict.fromkeys([*whole, *alike, *around]))[:SUGGESTIONS]

    def note(self, texts: Iterable[str], known: Collection[str] = ()) -> str | None:
        """A sentence that names the unknown words and near ones; `None` when every word is known."""
        unknown = self.unknown(texts, known)
        if not unknown:
            return None
        each = "; ".join(f"{_shortened(word)!r}{self._suggested(word)}" for word in unknown[:WORDS_SHOWN])
        if len(unknown) > WORDS_SHOWN:
            each += f"; and {len(unknown) - WORDS_SHOWN:,} more"
        return (
            f"never learned by this model: {each}; it knows {len(self.emoji)} emoji by their Unicode names and the "
            f"backgrounds {', '.join(self.colors)}"
        )

    def spelled(self, text: str) -> tuple[str, dict[str, str]]:
        """The text with the names of the emoji characters in it, and which character has which name."""
        return spell_out(text, self._names, self._words)

    def characters(self) -> dict[str, str]:
        """The emoji of each name that is one."""
        return characters(self.emoji, self._words)

    def things(self, text: str) -> list[str]:
        """The emoji that a text names, each by its whole name or by a part of it that is no color and no relation."""
        said = _words(text)
        found: list[str] = []
        position = 0
        while position < len(said):
            length = self._name_at(said, position)
            if length > 0:
                found.append(" ".join(said[position : position + length]))
            position += max(length, 1)
        return found

    def placement_note(self, text: str) -> str | None:
        """A sentence for a text that names more than this model can place, or does not say where; else `None`."""
        things = self.things(text)
        if len(things) < 2 or not self.relations or self._are_placed(things, text):
            return None
        named = list(dict.fromkeys(things))
        shown = ", ".join(named[:NAMES_SHOWN]) + (", ..." if len(named) > NAMES_SHOWN else "")
        return (
            f"this model draws one thing, or {self.placing}, as in "
            f"'{things[0]} {self.relations[0]} {things[1]}'; of {shown} it may draw only one"
        )

    @property
    def placing(self) -> str:
        """How several things are asked for, for example "two or three with left of or below between their names, the
        same each time"."""
        several = {2: "two", 3: "two or three"}.get(self.together, f"two to {self.together}")
        same = ", the same each time" if self.together > 2 else ""
        return f"{several} with {_listed(self.relations)} between their names{same}"

    def _are_placed(self, things: Sequence[str], text: str) -> bool:
        """Whether a caption could have named these things, with the relations of this text."""
        said = f" {' '.join(_words(text))} "
        counts = [count for relation in self.relations if (count := said.count(f" {relation} "))]
        return len(things) <= self.together and len(counts) == 1 and counts[0] >= len(things) - 1

    def _name_at(self, said: Sequence[str], position: int) -> int:
        """How many words the name of an emoji takes at this place; 0 where none begins."""
        for length in range(min(self._longest_name, len(said) - position), 1, -1):
            if " ".join(said[position : position + length]) in self._names:
                return length
        return int(said[position] in self._nouns)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.emoji)

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self.words)

    @cached_property
    def _longest_name(self) -> int:
        return max((len(name.split()) for name in self.emoji), default=0)

    @cached_property
    def _nouns(self) -> frozenset[str]:
        """Words that stand for an emoji by themselves: the last of a name, "apple", "hoop" of "basketball and hoop"; or
        the one before a last word that many names share, "dog" of "dog face"."""
        parts = [part.split() for name in self.emoji for part in name.split(" and ")]
        last = Counter(part[-1] for part in parts)
        nouns = {part[-2] if last[part[-1]] > SHARED and len(part) > 1 else part[-1] for part in parts}
        return frozenset(nouns.difference(self.colors, *(relation.split() for relation in self.relations)))

    def _suggested(self, word: str) -> str:
        near = self.near(word)
        return f" (near: {', '.join(self._in_names(one) for one in near)})" if near else ""

    def _in_names(self, word: str) -> str:
        """The word, with the names that it is a part of."""
        names = [name for name in self.emoji if word in name.split() and word != name]
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        return f"{word!r} as in {shown}" if names else repr(word)


def spelling_note(names: Mapping[str, str], texts: Iterable[str] = ()) -> str:
    """What to say of emoji characters that were read by their names. texts: that they stand in."""
    shown = [f"{character} as {name!r}" for character, name in list(names.items())[:WORDS_SHOWN]]
    more = len(names) - len(shown)
    ignored = dict.fromkeys(what for text in texts for what in left_out(text))
    without = f"; {' and '.join(ignored)} are left out" if ignored else ""
    return f"emoji are read by their names: {', '.join(shown)}{f', and {more} more' if more else ''}{without}"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _shortened(word: str) -> str:
    return word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..."


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
