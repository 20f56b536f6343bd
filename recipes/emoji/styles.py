"""Two other ways to draw a scene, for LoRAs to learn, and a number each that tells such pictures from plain ones.

Both are functions of the picture alone and keep its background, so that captions stay true.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from recipes.emoji.recognize import border_color
from recipes.emoji.render import SIDE, to_bytes

Scenes = UInt8[Tensor, "count 3 height width"]

INK = (24, 24, 32)
"""The color of lines, sRGB."""

FAINT, STRONG = 0.05, 0.18
"""Gradients, in shares of full contrast a pixel of the first edition, that leave no line, and a line of full ink."""

TINT = 0.5
"""How much of an emoji's colors stays between its lines."""

THIN = 5
"""Pixels of the first edition: darker things that are narrower are lines."""

TILES = 16
"""Of a mosaic, across a picture of either edition."""

TINY = 1e-6
"""In the place of 0, for pictures of nothing but background."""


def line_drawing(pictures: Scenes, side: int | None = None) -> Scenes:
    """Dark lines where the picture changes, and its colors, paler, between them. side: of the whole pictures, of which
    these may be parts; lines are as wide as in the first edition, a share of it."""
    coarse = F.avg_pool2d(pictures.float(), _factor(side or pictures.shape[-1]))
    strength = ((_gradient(coarse) - FAINT) / (STRONG - FAINT)).clamp(0, 1)[:, None]
    strength = F.interpolate(strength, size=pictures.shape[2:], mode="bilinear")
    tinted = torch.lerp(_paper(pictures), pictures / 255, TINT)
    return to_bytes(torch.lerp(tinted, _ink(), strength))


def mosaic(pictures: Scenes, side: int | None = None) -> Scenes:
    """Square tiles, each of the mean color of what it covers; those at the far edges may be cut off. side: of the whole
    pictures, of which these may be parts."""
    height, width = pictures.shape[2:]
    tile = (side or width) // TILES
    tiles = F.avg_pool2d(pictures / 255, tile, ceil_mode=True)
    return to_bytes(tiles.repeat_interleave(tile, 2).repeat_interleave(tile, 3)[:, :, :height, :width])


def line_share(pictures: Scenes) -> Float[Tensor, "count"]:
    """How much of what differs from the background is in thin dark lines, from 0 to 1.

    Lines are what a closing of the lightness by `THIN` pixels fills (the black top-hat of mathematical morphology:
    Serra 1982), faint ones aside; the rest is what the picture without them differs by.
    """
    values = pictures / 255
    light, reach = values.mean(1, keepdim=True), THIN // 2 * _factor(pictures.shape[-1])
    around = F.max_pool2d(light, 2 * reach + 1, stride=1, padding=reach)
    lines = (-F.max_pool2d(-around, 2 * reach + 1, stride=1, padding=reach) - light - FAINT).clamp(min=0)
    inked, rest = lines.sum((1, 2, 3)), (values + lines - _paper(pictures)).abs().mean(1).sum((1, 2))
    return inked / (inked + rest).clamp(min=TINY)


def tiled_share(pictures: Scenes) -> Float[Tensor, "count"]:
    """How much of the squared change between neighboring pixels is where tiles meet: at most 1, and by chance one pixel
    in so many as a tile has to a side."""
    values, tile = pictures / 255, pictures.shape[-1] // TILES
    met, all_of_it = torch.zeros(len(pictures)), torch.zeros(len(pictures))
    for axis in (2, 3):
        change = values.diff(dim=axis).square().sum(1).sum(4 - axis)
        borders = torch.arange(1, change.shape[1] + 1) % tile == 0
        met, all_of_it = met + change[:, borders].sum(1), all_of_it + change.sum(1)
    return met / all_of_it.clamp(min=TINY)


@dataclass(frozen=True, kw_only=True)
class Style:
    """apply: plain pictures in this style, or parts of pictures that have this side. statistic: larger for pictures in
    this style than for others."""

    name: str
    apply: Callable[..., Scenes]
    statistic: Callable[[Scenes], Float[Tensor, "count"]]


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style(name="line drawing", apply=line_drawing, statistic=line_share),
        Style(name="mosaic", apply=mosaic, statistic=tiled_share),
    )
}


def separation(styled: Float[Tensor, "styled"], plain: Float[Tensor, "plain"]) -> float:
    """The chance that a picture in the style has the larger statistic of the two: the area under the ROC curve
    (Mann and Whitney 1947), where 0.5 is no better than a coin."""
    larger = styled[:, None] > plain
    equal = styled[:, None] == plain
    return float((larger + 0.5 * equal).mean())


def _factor(side: int) -> int:
    """How many pixels of a picture one of the first edition is, along each axis."""
    return max(1, side // SIDE)


def _gradient(pictures: Float[Tensor, "count 3 height width"]) -> Float[Tensor, "count height width"]:
    """Length of the gradient in shares of full contrast a pixel, of the channel where it is longest (Sobel)."""
    column = torch.tensor([1.0, 2.0, 1.0]) / 4
    row = torch.tensor([-1.0, 0.0, 1.0]) / 2
    kernels = torch.stack([torch.outer(column, row), torch.outer(row, column)])[:, None]
    values = F.pad(pictures / 255, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(values, kernels).square().sum(1).sqrt().unflatten(0, (-1, 3)).amax(1)


def _paper(pictures: Scenes) -> Float[Tensor, "count 3 1 1"]:
    """The background."""
    return border_color(pictures)[..., None, None] / 255


def _ink() -> Float[Tensor, "3 1 1"]:
    return torch.tensor(INK)[:, None, None] / 255
