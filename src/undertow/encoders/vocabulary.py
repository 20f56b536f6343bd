"""The words that a small model was trained with, and what to say about others."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

NEAR = 0.7
"""Least similarity of a suggestion, as difflib measures it: "appel" and "apple" have 0.8, "zebra" and "bear" 0.4."""
SAME = 0.9
"""Least similarity of a whole name."""

SUGGESTIONS = 3
NAMES_SHOWN = 3

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a model can be asked for. words: all that its captions had; the rest by their roles: the names of what it
    draws, the colors it puts behind them, and how two of them stand to each other."""

    words: tuple[str, ...]
    emoji: tuple[str, ...]
    colors: tuple[str, ...]
    relations: tuple[str, ...]

    def unknown(self, texts: Iterable[str], known: Collection[str] = ()) -> list[str]:
        """The words that training never had, in their order, each once. known: names that have a meaning all the same,
        as those of textual inversions do."""
        said = dict.fromkeys(word for text in texts for word in _words(text))
        meaningful = {*self.words, *(word for name in known for word in _words(name))}
        return [word for word in said if word not in meaningful]

    def near(self, word: str) -> list[str]:
        """Names that look like this word when written without spaces, known words that look like it, and words that it
        is a part of; best first."""
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
        each = "; ".join(f"{word!r}{self._suggested(word)}" for word in unknown)
        return (
            f"never learned by this model: {each}; it knows {len(self.emoji)} emoji by their Unicode names and the "
            f"backgrounds {', '.join(self.colors)}"
        )

    def _suggested(self, word: str) -> str:
        near = self.near(word)
        return f" (near: {', '.join(self._in_names(one) for one in near)})" if near else ""

    def _in_names(self, word: str) -> str:
        """The word, with the names that it is a part of."""
        names = [name for name in self.emoji if word in name.split() and word != name]
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        return f"{word!r} as in {shown}" if names else repr(word)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
