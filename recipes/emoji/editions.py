"""The two editions of the model: how large its pictures are, where emoji stand in them, and how many."""

from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.render import ANYWHERE, ON_CELLS, Glyphs, Placement, draw_places, render
from recipes.emoji.scenes import UP_TO_TWO, Mix, Scene, draw_training_scene
from undertow.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What pictures are drawn from. anywhere: for the autoencoder. on_cells: for the U-Net, see `ON_CELLS`."""

    anywhere: Placement
    on_cells: Placement
    mix: Mix

    @property
    def side(self) -> int:
        """Pixels of a picture's side."""
        return self.anywhere.side

    def draw(
        self, random: Random, count: int, glyphs: Glyphs, placement: Placement
    ) -> tuple[list[Scene], UInt8[Tensor, "count 3 side side"]]:
        """Training scenes and their pictures, with emoji at random places."""
        scenes = [draw_training_scene(random, self.mix) for _ in range(count)]
        drawn = [render(scene, draw_places(scene, random, placement), glyphs, self.side) for scene in scenes]
        return scenes, torch.stack(drawn)


FIRST = Edition(anywhere=ANYWHERE, on_cells=ON_CELLS, mix=UP_TO_TWO)

CRISP_SIDE, CRISP_CELL = 128, 8

CRISP = Edition(
    anywhere=Placement(
        side=CRISP_SIDE,
        sizes=(tuple(range(80, 113, 4)), tuple(range(48, 61, 4)), (34, 36, 38, 40)),
        step=1,
        jitter=CRISP_SIDE,
        shared_jitter=10,
    ),
    on_cells=Placement(
        side=CRISP_SIDE,
        sizes=((96, 112), (56,), (36,)),
        step=CRISP_CELL,
        jitter=CRISP_CELL,
        shared_jitter=10,
    ),
    mix=Mix(singles=0.45, triples=0.1),
)
"""The first edition at twice the size, on as many cells, and three emoji in a row or column."""


def edition_of(side: int) -> Edition:
    """The edition whose pictures have sides of so many pixels. Errors: `DataError` where there is none."""
    for edition in (FIRST, CRISP):
        if edition.side == side:
            return edition
    raise DataError("the model", f"it draws pictures of {side} pixels", "the recipe has editions of 64 and 128")
