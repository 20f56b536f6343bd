"""The measurements of docs/results/emoji.md: does the model draw what is asked, also what it never saw together."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.recognize import Recognized, recognize
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import UP_TO_TWO, Mix, Scene, draw_pair_kept_out, draw_training_scene, singles
from undertow.checkpoints.files.atomic import write_text
from undertow.errors import DataError
from undertow.training.randomness import seed_for

PROMPTS = 500
"""Of each kind; the seed of the n-th picture is n."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of prompt, and the least share of pictures with the right emoji and the right background."""

    name: str
    scenes: tuple[Scene, ...]
    least_right: float
    least_color: float | None


def kinds(count: int = PROMPTS, mix: Mix = UP_TO_TWO) -> tuple[Kind, ...]:
    """The kinds that are measured, `count` prompts each, always the same; a fourth where scenes have three emoji."""
    random = Random(seed_for(0, "evaluate"))
    one_or_two = (
        Kind(
            name="one emoji, on colors it was trained with",
            scenes=tuple(_some(list(singles(trained=True)), count, random)),
            least_right=0.99,
            least_color=0.98,
        ),
        Kind(
            name="one emoji, on the color it was never trained with",
            scenes=tuple(_some(list(singles(trained=False)), count, random)),
            least_right=0.99,
            least_color=0.95,
        ),
        Kind(
            name="two emoji never seen together",
            scenes=tuple(draw_pair_kept_out(random) for _ in range(count)),
            least_right=0.80,
            least_color=None,
        ),
    )
    if not mix.triples:
        return one_or_two
    three = tuple(draw_training_scene(random, Mix(singles=0, triples=1)) for _ in range(count))
    return (*one_or_two, Kind(name="three emoji", scenes=three, least_right=0, least_color=None))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One kind's pictures and what they show. right, color: shares. confusions: (asked, found) with counts."""

    kind: Kind
    pictures: UInt8[Tensor, "count 3 side side"]
    recognized: Recognized

    @property
    def right(self) -> float:
        return float(self.recognized.right.float().mean())

    @property
    def color(self) -> float:
        return float(self.recognized.color.float().mean())

    def confusions(self, most: int) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: the emoji asked for, the one found, how often."""
        pairs = Counter(
            (asked, found)
            for scene, names in zip(self.kind.scenes, self.recognized.found, strict=True)
            for asked, found in zip(scene.names, names, strict=True)
            if asked != found
        )
        return [(asked, found, times) for (asked, found), times in pairs.most_common(most)]


Draw = Callable[[Sequence[str], Sequence[int]], UInt8[Tensor, "count 3 side side"]]
"""Captions and seeds to pictures."""


def measure(kind: Kind, draw: Draw, glyphs: Glyphs) -> Measured:
    """Draws the prompts of a kind and looks at the pictures."""
    pictures = draw([scene.caption for scene in kind.scenes], range(len(kind.scenes)))
    return Measured(kind=kind, pictures=pictures, recognized=recognize(pictures, kind.scenes, glyphs))


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What another program measured of the same kinds. program: its name and version. right, color: by kind."""

    program: str
    count: int
    right: tuple[float, ...]
    color: tuple[float, ...]


def write_shares(program: str, measured: Sequence[Measured], path: Path) -> None:
    """Writes what a program measured, for `read_shares`."""
    shares = Shares(
        program=program,
        count=len(measured[0].pictures),
        right=tuple(one.right for one in measured),
        color=tuple(one.color for one in measured),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(asdict(shares), indent=2) + "\n", path)


def read_shares(path: Path) -> Shares:
    """What `write_shares` wrote. Errors: `DataError`."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        right, color = tuple(map(float, stored["right"])), tuple(map(float, stored["color"]))
        return Shares(program=str(stored["program"]), count=int(stored["count"]), right=right, color=color)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(path, f"no evaluation ({err})", "write it with recipes/emoji/measure_diffusers.py") from err


def agreement(measured: Sequence[Measured], other: Shares) -> float:
    """Largest difference between two evaluations of the same prompts, over all shares."""
    shares = zip(measured, other.right, other.color, strict=True)
    return max(max(abs(one.right - right), abs(one.color - color)) for one, right, color in shares)


def _some(scenes: list[Scene], count: int, random: Random) -> list[Scene]:
    """`count` of them, each once before any comes again."""
    chosen: list[Scene] = []
    while len(chosen) < count:
        chosen += random.sample(scenes, min(len(scenes), count - len(chosen)))
    return chosen
