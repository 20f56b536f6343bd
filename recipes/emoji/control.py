"""What the embedded model's ControlNet and image prompt learn from: scenes with their edge maps, and emoji with another
picture of the same emoji as reference."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.editions import FIRST, Edition
from recipes.emoji.folders import write_captioned, write_pictures
from recipes.emoji.names import COLORS
from recipes.emoji.render import Glyphs, draw_places, render
from recipes.emoji.scenes import Scene, draw_single, spoken
from undertow.hints.edges import canny
from undertow.training.paired_images import preprocess
from undertow.training.randomness import seed_for

NAMED = 0.25
"""Share of captions beside a reference that name the emoji; the others say the background alone."""

Pictures = UInt8[Tensor, "count 3 side side"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedData:
    """Pictures with a caption and a second picture each: its edges, or a reference."""

    pictures: Pictures
    paired: Pictures
    captions: tuple[str, ...]


def edges_of(picture: UInt8[Tensor, "3 side side"]) -> UInt8[Tensor, "3 side side"]:
    """The control map of a picture, as `undertow preprocess canny` makes it."""
    return preprocess(picture, canny)


def draw_with_edges(count: int, glyphs: Glyphs, *, edition: Edition = FIRST, seed: int = 0) -> PairedData:
    """Training scenes with emoji anywhere, at sizes and places that the base was not trained with: edges say where."""
    random = Random(seed_for(seed, "edges"))
    scenes, pictures = edition.draw(random, count, glyphs, edition.anywhere)
    return PairedData(
        pictures=pictures,
        paired=torch.stack([edges_of(picture) for picture in pictures]),
        captions=tuple(spoken(scene, random) for scene in scenes),
    )


def draw_with_references(count: int, glyphs: Glyphs, *, edition: Edition = FIRST, seed: int = 0) -> PairedData:
    """Single emoji where the base was trained with them, each beside the same emoji elsewhere, on another color: a
    reference says what to draw, and neither where nor on what."""
    random = Random(seed_for(seed, "references"))
    scenes = [draw_single(random) for _ in range(count)]
    return PairedData(
        pictures=torch.stack(
            [render(scene, draw_places(scene, random, edition.on_cells), glyphs, edition.side) for scene in scenes]
        ),
        paired=torch.stack([draw_reference(scene.names[0], random, glyphs, edition=edition) for scene in scenes]),
        captions=tuple(spoken(scene, random) if random.random() < NAMED else on_color(scene.color) for scene in scenes),
    )


def draw_reference(
    name: str, random: Random, glyphs: Glyphs, *, edition: Edition = FIRST
) -> UInt8[Tensor, "3 side side"]:
    """An emoji on any of the colors, at any size and place."""
    scene = Scene(names=(name,), color=random.choice(tuple(COLORS)))
    return render(scene, draw_places(scene, random, edition.anywhere), glyphs, edition.side)


def on_color(color: str) -> str:
    """A caption that says the background alone."""
    return f"on {color} background"


def write_paired(data: PairedData, folder: Path, name_of_pairs: str) -> None:
    """Writes FOLDER/pictures with its captions, and FOLDER/NAME_OF_PAIRS with files of the same names, for `undertow
    train`."""
    write_captioned(data.pictures, data.captions, folder / "pictures")
    write_pictures(data.paired, folder / name_of_pairs)
