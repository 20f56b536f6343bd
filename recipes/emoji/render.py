"""Scenes as pictures: glyphs of the Noto Color Emoji font, scaled, placed and laid over a plain color."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recipes.emoji.names import COLORS, EMOJI, character
from recipes.emoji.scenes import Scene
from undertow.errors import DataError

SIDE = 64
"""Pixels of a picture's side, in the first edition."""

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109
"""The only size that the font's bitmaps have."""

SINGLE_SIZES = range(40, 57, 2)
PAIR_SIZES = range(24, 31, 2)
"""Longer side of an emoji in pixels, alone and as one of two."""

CELL = 4
"""Pixels to a side of the autoencoder's cells, in the first edition."""

JITTER = 5
"""How far one of two stands off the middle of its half, at most, across the line on which both stand."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which sizes and places emoji may have, in pixels. side: of the picture. sizes: of the longer side of one emoji by
    how many the picture has. step: from one place to the next. jitter: how far an emoji alone may stand off the middle,
    in each direction. shared_jitter: how far one of several may stand off the line on which all of them stand."""

    side: int = SIDE
    sizes: tuple[tuple[int, ...], ...]
    step: int
    jitter: int
    shared_jitter: int = JITTER


ANYWHERE = Placement(sizes=(tuple(SINGLE_SIZES), tuple(PAIR_SIZES)), step=1, jitter=SIDE)
ON_CELLS = Placement(sizes=((48, 56), (28,)), step=CELL, jitter=CELL)
"""A moved emoji has the same latents, moved: of `ANYWHERE`'s sixteen kinds of latents for it, one has to be learned."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an emoji's square lies, in pixels."""

    size: int
    left: int
    top: int


def draw_places(scene: Scene, random: Random, placement: Placement = ANYWHERE) -> tuple[Place, ...]:
    """A random place for each emoji of the scene: anywhere in the picture, or in its strip of it."""
    side, count = placement.side, len(scene.names)
    if scene.relation is None:
        size = random.choice(placement.sizes[0])
        starts = _alone(size, placement)
        return (Place(size=size, left=random.choice(starts), top=random.choice(starts)),)
    places = []
    for strip in strips(scene, side):
        size = random.choice(placement.sizes[count - 1])
        along = random.choice(_stepped(range(strip.start, strip.stop - size + 1), placement))
        middle = (side - size) // 2
        jitter = placement.shared_jitter
        across = random.choice(_stepped(range(middle - jitter, middle + jitter + 1), placement))
        left, top = (along, across) if scene.is_row else (across, along)
        places.append(Place(size=size, left=left, top=top))
    return tuple(places)


def places_alone(placement: Placement) -> list[Place]:
    """Every place of an emoji alone."""
    return [
        Place(size=size, left=left, top=top)
        for size in placement.sizes[0]
        for left in _alone(size, placement)
        for top in _alone(size, placement)
    ]


def _alone(size: int, placement: Placement) -> list[int]:
    """Where an emoji alone may begin, across and down."""
    middle, room = (placement.side - size) // 2, placement.side - size
    return _stepped(range(max(0, middle - placement.jitter), min(room, middle + placement.jitter) + 1), placement)


def _stepped(room: range, placement: Placement) -> list[int]:
    return [pixel for pixel in room if pixel % placement.step == 0]


def strips(scene: Scene, side: int) -> tuple[range, ...]:
    """The pixels, across or down, that belong to each emoji of a scene of several, in the order of their names."""
    count = len(scene.names)
    in_place = tuple(range(index * side // count, (index + 1) * side // count) for index in range(count))
    return in_place if scene.first_comes_first else in_place[::-1]


class Glyphs:
    """The emoji of a font at any size. Errors: `DataError` when the font is missing or lacks one of them."""

    def __init__(self, font: Path = FONT):
        self.font = font

    def require(self) -> None:
        """Errors: `DataError`, now and not after an hour."""
        for name in EMOJI:
            self._bitmap(name)

    @cached_property
    def _font(self) -> ImageFont.FreeTypeFont:
        try:
            return ImageFont.truetype(str(self.font), BITMAP_SIZE)
        except OSError as err:
            raise DataError(
                self.font, f"the font cannot be read ({err})", "apt install fonts-noto-color-emoji, or name its file"
            ) from err

    @lru_cache(maxsize=4096)  # noqa: B019  there is one of these, and it lives as long as its process
    def at(self, name: str, size: int) -> Float[Tensor, "4 size size"]:
        """Premultiplied RGBA in [0, 1], cropped to what is visible, its longer side `size` pixels, in the middle."""
        glyph = self._bitmap(name)
        scale = size / max(glyph.size)
        shape = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
        small = glyph.convert("RGBa").resize(shape, Image.Resampling.LANCZOS)
        square = Image.new("RGBa", (size, size))
        square.paste(small, ((size - shape[0]) // 2, (size - shape[1]) // 2))
        return (
            torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).reshape(size, size, 4).permute(2, 0, 1)
            / 255
        )

    def _bitmap(self, name: str) -> Image.Image:
        canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE))
        ImageDraw.Draw(canvas).text((20, 20), character(name), font=self._font, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            raise DataError(self.font, f"it has no picture of {name!r}", "use Noto Color Emoji 2.042 or newer")
        return canvas.crop(box)


def render(scene: Scene, places: Sequence[Place], glyphs: Glyphs, side: int = SIDE) -> UInt8[Tensor, "3 side side"]:
    """The scene with each emoji at its place, later ones in front."""
    picture = (torch.tensor(COLORS[scene.color]) / 255)[:, None, None].repeat(1, side, side)
    for name, place in zip(scene.names, places, strict=True):
        lay(glyphs.at(name, place.size), picture, place)
    return to_bytes(picture)


def lay(glyph: Float[Tensor, "4 size size"], picture: Float[Tensor, "3 height width"], place: Place) -> None:
    """Lays a glyph of premultiplied color over a picture, in place."""
    window = picture[:, place.top : place.top + place.size, place.left : place.left + place.size]
    window.mul_(1 - glyph[3]).add_(glyph[:3])


def to_bytes(shares: Float[Tensor, "*any"]) -> UInt8[Tensor, "*any"]:
    """Shares of full brightness, in [0, 1], as bytes; what lies outside is clamped."""
    return shares.mul(255).round().clamp(0, 255).to(torch.uint8)
