"""Which emoji a picture shows, by comparing its pixels with every rendering that there could be.

The references are all emoji in all sizes at all places, on the background that the picture has. The squared distance
of a picture I to a glyph of premultiplied color C and coverage a over a background b is the sum of (I - b - T)^2 with
T = C - a b, that is of (I - b)^2 - 2 (I - b) T + T^2: one correlation per size finds the nearest of all places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.render import PAIR_SIZES, SIDE, SINGLE_SIZES, Glyphs, strips, to_bytes
from recipes.emoji.scenes import Scene

BORDER = 2
"""Pixels along the edge whose median is the background."""

SIZES = (SINGLE_SIZES, PAIR_SIZES, range(17, 21))
"""Of one emoji, of one of two and of one of three, in both editions."""

MARGIN = 2
"""Pixels around a reference in another style, which may reach beyond its emoji's square."""

Restyle = Callable[[UInt8[Tensor, "count 3 height width"], int], UInt8[Tensor, "count 3 height width"]]
"""Parts of plain pictures of such a side, drawn in another style: the same wherever in the picture something stands."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recognized:
    """found: the emoji in the place of each of the scene's. right: whether all of them are those asked for. color:
    whether the background is the one asked for."""

    found: tuple[tuple[str, ...], ...]
    right: Bool[Tensor, "count"]
    color: Bool[Tensor, "count"]


def recognize(
    pictures: UInt8[Tensor, "count 3 side side"],
    scenes: Sequence[Scene],
    glyphs: Glyphs,
    *,
    style: Restyle | None = None,
) -> Recognized:
    """What each picture shows, where its scene says that emoji should be; of larger pictures than the first edition's,
    reduced to that size. style: of the references, plain if `None`."""
    colors, pictures = background(pictures), reduced(pictures)
    found: list[tuple[str, ...]] = [()] * len(scenes)
    for count in sorted({len(scene.names) for scene in scenes}):
        rows = [index for index, scene in enumerate(scenes) if len(scene.names) == count]
        for part in range(count):
            windows = torch.stack([_strip(pictures[index], scenes[index], part, colors[index]) for index in rows])
            names = nearest_emoji(windows, [colors[index] for index in rows], SIZES[count - 1], glyphs, style)
            for index, name in zip(rows, names, strict=True):
                found[index] = (*found[index], name)
    return Recognized(
        found=tuple(found),
        right=torch.tensor([names == scene.names for names, scene in zip(found, scenes, strict=True)]),
        color=torch.tensor([color == scene.color for color, scene in zip(colors, scenes, strict=True)]),
    )


def reduced(pictures: UInt8[Tensor, "count 3 _side _side"]) -> UInt8[Tensor, "count 3 64 64"]:
    """The pictures at the first edition's size: means of as many pixels as fall into one."""
    factor = pictures.shape[-1] // SIDE
    return pictures if factor == 1 else F.avg_pool2d(pictures.float(), factor).round().to(torch.uint8)


def background(pictures: UInt8[Tensor, "count 3 height width"]) -> list[str]:
    """The named color nearest to the median of each picture's border."""
    border = border_color(pictures)
    colors = torch.tensor(list(COLORS.values()), dtype=torch.float32)
    names = list(COLORS)
    return [names[index] for index in (border[:, None] - colors).square().sum(-1).argmin(-1).tolist()]


def border_color(pictures: UInt8[Tensor, "count 3 height width"]) -> Float[Tensor, "count 3"]:
    """The median of each picture's border, in each channel."""
    edge = torch.ones(pictures.shape[-2:], dtype=torch.bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    return pictures[:, :, edge].float().median(-1).values


def nearest_emoji(
    windows: UInt8[Tensor, "count 3 height width"],
    colors: Sequence[str],
    sizes: Sequence[int],
    glyphs: Glyphs,
    style: Restyle | None = None,
) -> list[str]:
    """The emoji of the nearest rendering with one emoji on the given background, anywhere in the window."""
    distances = torch.empty(len(windows), len(EMOJI))
    for color in dict.fromkeys(colors):
        rows = [index for index, other in enumerate(colors) if other == color]
        base = torch.tensor(COLORS[color])[:, None, None] / 255
        each = [_distances(windows[rows] / 255 - base, base, size, glyphs, style) for size in sizes]
        distances[rows] = torch.stack(each).amin(0)
    return [EMOJI[index] for index in distances.argmin(-1).tolist()]


def _strip(picture: UInt8[Tensor, "3 64 64"], scene: Scene, part: int, color: str) -> UInt8[Tensor, "3 64 64"]:
    """The picture with nothing but background outside the strip where this one of several emoji belongs."""
    if scene.relation is None:
        return picture
    along = strips(scene, SIDE)[part]
    room = slice(along.start, along.stop)
    inside = (slice(None), slice(None), room) if scene.is_row else (slice(None), room)
    alone = torch.tensor(COLORS[color], dtype=torch.uint8)[:, None, None].repeat(1, SIDE, SIDE)
    alone[inside] = picture[inside]
    return alone


def _distances(
    offset: Float[Tensor, "count 3 height width"],
    base: Float[Tensor, "3 1 1"],
    size: int,
    glyphs: Glyphs,
    style: Restyle | None,
) -> Float[Tensor, "count emoji"]:
    """Least squared distance to each emoji at this size, over all places, but for the part that all of them share."""
    glyph = torch.stack([glyphs.at(name, size) for name in EMOJI])
    templates = glyph[:, :3] - glyph[:, 3:] * base
    if style is not None:
        around = (MARGIN,) * 4
        plain = to_bytes(F.pad(templates, around) + base)
        templates, offset = style(plain, SIDE) / 255 - base, F.pad(offset, around)
    overlap = F.conv2d(offset, templates).amax((2, 3))
    return templates.square().sum((1, 2, 3)) - 2 * overlap
