"""What few steps cost: whether a student draws what is asked, and as much of a variety as its teacher."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recipes.emoji.editions import Edition
from recipes.emoji.evaluate import Draw, Measured, kinds, measure
from recipes.emoji.render import Glyphs, places_alone, render
from recipes.emoji.scenes import Scene, singles

CAPTIONS = 40
"""Of one emoji, whose variety is measured."""

SEEDS = 8
"""Pictures of each of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FewSteps:
    """What was measured of one model at one number of steps. seconds: a picture. recall: the mean over all emoji of the
    share of their pictures that show them. spread: the mean distance of two pictures of one caption. nearest: the mean
    distance of a picture to the nearest training rendering of its caption. Distances are root mean squares of pixels in
    [0, 255]."""

    name: str
    steps: int
    seconds: float
    kinds: tuple[Measured, ...]
    recall: float
    spread: float
    nearest: float


def measure_steps(
    name: str, steps: int, draw: Draw, edition: Edition, glyphs: Glyphs, count: int, *, clock: Callable[[], float]
) -> FewSteps:
    """Draws `count` prompts of every kind, and `CAPTIONS` of one emoji with `SEEDS` seeds each."""
    start = clock()
    measured = tuple(measure(kind, draw, glyphs) for kind in kinds(count, edition.mix))
    seconds = (clock() - start) / sum(len(one.pictures) for one in measured)
    scenes = list(singles(trained=True))
    scenes = scenes[:: len(scenes) // CAPTIONS][:CAPTIONS]
    asked = [(scene, seed) for scene in scenes for seed in range(SEEDS)]
    drawn = draw([scene.caption for scene, _ in asked], [seed for _, seed in asked])
    pictures = drawn.reshape(len(scenes), SEEDS, *drawn.shape[1:])
    return FewSteps(
        name=name,
        steps=steps,
        seconds=seconds,
        kinds=measured,
        recall=recall(measured[0]),
        spread=mean(spread(some) for some in pictures),
        nearest=mean(
            nearest_rendering(some, scene, edition, glyphs) for some, scene in zip(pictures, scenes, strict=True)
        ),
    )


def recall(measured: Measured) -> float:
    """The mean over the emoji asked for of how often they are seen, however often they were asked for."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for scene, right in zip(measured.kind.scenes, measured.recognized.right.tolist(), strict=True):
        seen[scene.names[0]].append(right)
    return mean(mean(each) for each in seen.values())


def spread(pictures: UInt8[Tensor, "count 3 side side"]) -> float:
    """Mean distance of two of the pictures."""
    return mean(float(distance(one, other)) for one, other in combinations(pictures, 2))


def nearest_rendering(
    pictures: UInt8[Tensor, "count 3 side side"], scene: Scene, edition: Edition, glyphs: Glyphs
) -> float:
    """Mean distance of the pictures to the nearest of all training renderings of a scene of one emoji."""
    renderings = torch.stack(
        [render(scene, (place,), glyphs, edition.side) for place in places_alone(edition.on_cells)]
    )
    return mean(float(distance(picture, renderings).min()) for picture in pictures)


def distance(one: UInt8[Tensor, "3 side side"], others: UInt8[Tensor, "*count 3 side side"]) -> Float[Tensor, "*count"]:
    """Root mean square over all pixels and colors."""
    return (one.float() - others.float()).square().mean((-3, -2, -1)).sqrt()
