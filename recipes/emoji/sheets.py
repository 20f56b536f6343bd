"""Sheets of samples: 64 that nobody chose, and the measured ones of each kind with a frame for right or wrong."""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from recipes.emoji.evaluate import kinds
from recipes.emoji.scenes import UP_TO_TWO, Mix, Scene

SAMPLES = 64
"""Pictures of a sheet, in eight rows; seeds 0 to 63."""

COLUMNS = 8
FRAME = 3
"""Pixels around a picture."""

RIGHT, WRONG = (40, 170, 80), (220, 40, 50)


def sheet_scenes(mix: Mix = UP_TO_TWO) -> list[Scene]:
    """What the uncurated samples show: the prompts of all kinds in turn, as `kinds` has them."""
    queues = [iter(kind.scenes) for kind in kinds(SAMPLES, mix)]
    return [next(queues[index % len(queues)]) for index in range(SAMPLES)]


def framed(pictures: UInt8[Tensor, "count 3 side side"], right: Bool[Tensor, "count"]) -> UInt8[Tensor, "count 3 f f"]:
    """The pictures in green frames where right, in red ones where wrong."""
    side = pictures.shape[-1] + 2 * FRAME
    colors = torch.tensor([RIGHT if one else WRONG for one in right.tolist()], dtype=torch.uint8)
    sheet = colors[:, :, None, None].repeat(1, 1, side, side)
    sheet[:, :, FRAME:-FRAME, FRAME:-FRAME] = pictures
    return sheet
