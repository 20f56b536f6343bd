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
"""Pixels of a picture's side."""

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109
"""The only size that the font's bitmaps have."""

SINGLE_SIZES = range(40, 57, 2)
PAIR_SIZES = range(24, 31, 2)
"""Longer side of an emoji in pixels, alone and as one of two."""

CELL = 4
"""Pixels to a side of the autoencoder's cells."""

JITTER = 5
"""How far one of two stands off the middle of its half, at most, across the line on which both stand."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which sizes and places emoji may have. step: from one place to the next, in pixels; jitter: how far an emoji
    alone may stand off the middle, in each direction."""

    single_sizes: Sequence[int]
    pair_sizes: Sequence[int]
    step: int
    jitter: int


ANYWHERE = Placement(single_sizes=SINGLE_SIZES, pair_sizes=PAIR_SIZES, step=1, jitter=SIDE)
ON_CELLS = Placement(single_sizes=(48, 56), pair_sizes=(28,), step=CELL, jitter=CELL)
"""A moved emoji has the same latents, moved: of `ANYWHERE`'s sixteen kinds of latents for it, one has to be learned."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an emoji's square lies, in pixels."""

    size: int
    left: int
    top: int


def draw_places(scene: Scene, random: Random, placement: Placement = ANYWHERE) -> tuple[Place, ...]:
    """A random place for each emoji of the scene: anywhere in the picture, or in its half of it."""

    def start(room: range) -> int:
        return random.choice([pixel for pixel in room if pixel % placement.step == 0])

    if scene.relation is None:
        size = random.choice(placement.single_sizes)
        middle = (SIDE - size) // 2
        room = range(max(0, middle - placement.jitter), min(SIDE - size, middle + placement.jitter) + 1)
        return (Place(size=size, left=start(room), top=start(room)),)
    halves = (0, SIDE // 2) if scene.first_comes_first else (SIDE // 2, 0)
    places = []
    for half in halves:
        size = random.choice(placement.pair_sizes)
        along = start(range(half, half + SIDE // 2 - size + 1))
        middle = (SIDE - size) // 2
        across = start(range(middle - JITTER, middle + JITTER + 1))
        left, top = (along, across) if scene.is_row else (across, along)
        places.append(Place(size=size, left=left, top=top))
    return tuple(places)


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


def render(scene: Scene, places: Sequence[Place], glyphs: Glyphs) -> UInt8[Tensor, "3 64 64"]:
    """The scene with each emoji at its place, later ones in front."""
    picture = (torch.tensor(COLORS[scene.color]) / 255)[:, None, None].repeat(1, SIDE, SIDE)
    for name, place in zip(scene.names, places, strict=True):
        glyph = glyphs.at(name, place.size)
        window = picture[:, place.top : place.top + place.size, place.left : place.left + place.size]
        window.mul_(1 - glyph[3]).add_(glyph[:3])
    return picture.mul(255).round().clamp(0, 255).to(torch.uint8)
