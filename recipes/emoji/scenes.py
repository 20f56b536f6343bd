"""What can be asked of the embedded model: one emoji, or several and where they stand, on a background color.

Some combinations never occur in training, by the rules of `is_trained_color` and `is_trained_pair`; pictures of those
show whether the model composes what it learned or repeats what it saw.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from random import Random

from recipes.emoji.names import COLORS, EMOJI
from undertow.training.randomness import seed_for

RELATIONS = ("left of", "right of", "above", "below")

PAIRS_KEPT_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the scenes with one and with three emoji; all others have two."""

    singles: float = 0.5
    triples: float = 0.0

    @property
    def together(self) -> int:
        """Emoji in a scene, at most."""
        return 3 if self.triples else 2


UP_TO_TWO = Mix()

_COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One emoji, or several in a row or column with the relation of each to the next."""

    names: tuple[str, ...]
    color: str
    relation: str | None = None

    @property
    def caption(self) -> str:
        """For example "red apple left of dog face on blue background"."""
        return f"{f' {self.relation} '.join(self.names)} on {self.color} background"

    @property
    def first_comes_first(self) -> bool:
        """Whether each emoji stands left of or above the next."""
        return self.relation in ("left of", "above")

    @property
    def in_places(self) -> tuple[str, ...]:
        """The emoji from left to right, or from top to bottom."""
        return self.names if self.first_comes_first else self.names[::-1]

    @property
    def is_row(self) -> bool:
        """Whether they stand side by side, not one above the other."""
        return self.relation in ("left of", "right of")


def is_trained_color(name: str, color: str) -> bool:
    """False for one of the eight colors of each emoji: the n-th emoji is never drawn on the n-th color, modulo 8."""
    return EMOJI.index(name) % len(_COLOR_NAMES) != _COLOR_NAMES.index(color)


def is_trained_pair(first: str, second: str) -> bool:
    """False for a tenth of the pairs, in any order, chosen by a hash of their names; True for all others."""
    names = "+".join(sorted((first, second)))
    return seed_for(0, f"pair {names}") % 1000 >= 1000 * PAIRS_KEPT_OUT


def singles(*, trained: bool) -> Iterator[Scene]:
    """All scenes of one emoji that training contains, or all that it leaves out."""
    for name in EMOJI:
        for color in _COLOR_NAMES:
            if is_trained_color(name, color) == trained:
                yield Scene(names=(name,), color=color)


@cache
def pairs_kept_out() -> tuple[tuple[str, str], ...]:
    """The pairs of emoji that never stand in one training picture. Thousands of hashes, and so taken once."""
    return tuple(pair for pair in combinations(EMOJI, 2) if not is_trained_pair(*pair))


def draw_training_scene(random: Random, mix: Mix = UP_TO_TWO) -> Scene:
    """A scene that training may contain: no two of its emoji are a pair that is kept out."""
    share = random.random()
    if share < mix.singles:
        return draw_single(random)
    count = 2 if share < 1 - mix.triples else 3
    while True:
        names = tuple(random.sample(EMOJI, count))
        if all(is_trained_pair(*pair) for pair in combinations(names, 2)):
            return Scene(names=names, color=_trained_color(random, *names), relation=random.choice(RELATIONS))


def draw_single(random: Random) -> Scene:
    """A scene of one emoji that training may contain."""
    name = random.choice(EMOJI)
    return Scene(names=(name,), color=_trained_color(random, name))


def draw_pair_kept_out(random: Random) -> Scene:
    """A scene of two emoji that no training picture shows together, each on a color it was trained with."""
    first, second = random.choice(pairs_kept_out())
    names = (first, second) if random.random() < 0.5 else (second, first)
    return Scene(names=names, color=_trained_color(random, *names), relation=random.choice(RELATIONS))


def spoken(scene: Scene, random: Random) -> str:
    """A caption as people write them: mostly `Scene.caption`, at times with articles, or without the background."""
    form = random.random()
    if form < 0.8:
        return scene.caption
    if form < 0.9:
        return scene.caption.removesuffix(f" on {scene.color} background")
    objects = [f"{_article(name)} {name}" for name in scene.names]
    return f" {scene.relation} ".join(objects) + f" on a {scene.color} background"


def understood(caption: str) -> Scene | None:
    """The scene that a caption of `spoken` asks for, whatever words without meaning stand around it; its color is empty
    where none is said. `None` for the empty caption."""
    said, _, ground = caption.partition(" on ")
    color = next((color for color in COLORS if f"{color} background" in ground), "")
    relation = next((relation for relation in RELATIONS if f" {relation} " in said), None)
    parts = said.split(f" {relation} ") if relation else [said]
    names = tuple(name for part in parts if (name := _named(part)) is not None)
    return Scene(names=names, color=color, relation=relation) if names else None


def _named(words: str) -> str | None:
    """The emoji that is named, the longest where a name is a part of another."""
    found = [name for name in EMOJI if f" {name} " in f" {words} "]
    return max(found, key=len, default=None)


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" and not name.startswith("un") else "a"


def _trained_color(random: Random, *names: str) -> str:
    return random.choice([color for color in _COLOR_NAMES if all(is_trained_color(name, color) for name in names)])
