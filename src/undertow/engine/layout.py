"""How the latents of a picture are shown to a network: whole, or in overlapping windows; with or without edges."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.engine.request import Axes
from undertow.shapes import Latents

MARGIN = 8
"""Cells by which seamless latents are continued on each side: what a few 3x3 convolutions at every level can see."""

Tile = Float[Tensor, "batch channels rows columns"]
"""What the network sees of latents in one window."""

Window = tuple[int, int]
"""Top and left of a window, in cells."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """size: of the latents, in cells. window: of what the network sees at once. overlap: share of a window that
    neighbors have in common. seamless: axes along which the latents close to a ring; margin: cells by which they are
    continued there on each side."""

    size: tuple[int, int]
    window: tuple[int, int]
    overlap: float = 0.5
    seamless: Axes = "none"
    margin: int = MARGIN

    @classmethod
    def whole(cls, size: tuple[int, int], seamless: Axes = "none") -> "Layout":
        """One window that shows everything."""
        return cls(size=size, window=size, seamless=seamless)

    def enlarged(self, factor: int) -> "Layout":
        """The same latents in cells that are `factor` times smaller, such as pixels."""
        (height, width), (rows, columns) = self.size, self.window
        return replace(
            self,
            size=(height * factor, width * factor),
            window=(rows * factor, columns * factor),
            margin=self.margin * factor,
        )

    def split_tiles(self, latents: Latents) -> list[Tile]:
        """What the network sees of latents, window by window."""
        continued = self._continued(latents)
        height, width = self.tile
        return [continued[:, :, top : top + height, left : left + width] for top, left in self.windows]

    def merge_tiles(self, parts: Sequence[Tile]) -> Latents:
        """The latents from estimates of all windows: their mean where they overlap (arXiv:2302.08113, eq. 5)."""
        if len(parts) == 1:
            return self._cut(parts[0])
        top, left = self._margins
        shape = (self.size[0] + 2 * top, self.size[1] + 2 * left)
        total = parts[0].new_zeros(*parts[0].shape[:2], *shape)
        count = parts[0].new_zeros(1, 1, *shape)
        height, width = self.tile
        for (row, column), part in zip(self.windows, parts, strict=True):
            inside = (..., slice(row, row + height), slice(column, column + width))
            total[inside] += part
            count[inside] += 1
        return self._cut(total / count)

    @property
    def windows(self) -> list[Window]:
        """Evenly spread, edges included, each neighbor overlapping by at least the share asked for."""
        top, left = self._margins
        lengths = (self.size[0] + 2 * top, self.size[1] + 2 * left)
        rows, columns = (_starts(length, seen, self.overlap) for length, seen in zip(lengths, self.tile, strict=True))
        return [(row, column) for row in rows for column in columns]

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of what the network sees: a window, which grows with the margins when it is all of them."""
        lengths = zip(self.window, self.size, self._margins, strict=True)
        height, width = (size + 2 * margin if window >= size else window for window, size, margin in lengths)
        return height, width

    @property
    def _margins(self) -> tuple[int, int]:
        """Cells at the top and the left, no more than the latents have."""
        height, width = self.size
        return (
            min(self.margin, height) if self.seamless in ("y", "both") else 0,
            min(self.margin, width) if self.seamless in ("x", "both") else 0,
        )

    def _continued(self, latents: Tensor) -> Tensor:
        top, left = self._margins
        return F.pad(latents, (left, left, top, top), mode="circular") if top or left else latents

    def _cut(self, latents: Tensor) -> Tensor:
        top, left = self._margins
        return latents[:, :, top : latents.shape[2] - top, left : latents.shape[3] - left]


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin so that they cover the length."""
    if window >= length:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = 1 + -(-(length - window) // stride)
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> Float[Tensor, "1 1 height width"]:
    """1 inside a box given in fractions, 0 outside, on latents of this size; at least one cell."""
    height, width = size
    left, top, right, bottom = box
    mask = torch.zeros(1, 1, height, width)
    rows = slice(min(round(top * height), height - 1), max(round(bottom * height), round(top * height) + 1))
    columns = slice(min(round(left * width), width - 1), max(round(right * width), round(left * width) + 1))
    mask[:, :, rows, columns] = 1
    return mask
