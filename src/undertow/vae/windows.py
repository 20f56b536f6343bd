"""Geometry of tiles: rectangles of a feature map."""

from dataclasses import dataclass

Size = tuple[int, int]
"""Height and width in cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The cells of a rectangle: rows `top` to `bottom` and columns `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def whole(cls, size: Size) -> "Window":
        return cls(top=0, left=0, bottom=size[0], right=size[1])

    @property
    def cells(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def grown(self, cells: int, size: Size) -> "Window":
        """`cells` more on every side, as far as the map of `size` reaches."""
        return Window(
            top=max(self.top - cells, 0),
            left=max(self.left - cells, 0),
            bottom=min(self.bottom + cells, size[0]),
            right=min(self.right + cells, size[1]),
        )

    def rescaled(self, before: Size, after: Size) -> "Window":
        """The same part of the picture in a map of another resolution; partial cells count as whole."""
        return Window(
            top=self.top * after[0] // before[0],
            left=self.left * after[1] // before[1],
            bottom=-(-self.bottom * after[0] // before[0]),
            right=-(-self.right * after[1] // before[1]),
        )

    def inside(self, outer: "Window") -> tuple[slice, slice]:
        """Where this window lies in a tensor that holds `outer`: indices of the last two axes."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return rows, slice(self.left - outer.left, self.right - outer.left)


def tiles(size: Size, edge: int) -> list[Window]:
    """Squares of `edge` cells that cover a map, row by row; the last of each row and column may be smaller."""
    return [
        Window(top=top, left=left, bottom=min(top + edge, size[0]), right=min(left + edge, size[1]))
        for top in range(0, size[0], edge)
        for left in range(0, size[1], edge)
    ]


def count_tiles(size: Size, edge: int) -> int:
    """How many `tiles` gives."""
    return -(-size[0] // edge) * -(-size[1] // edge)


def middle_tile(size: Size, edge: int) -> Window:
    """One of `tiles`, with neighbors on all sides where any tile has."""
    top, left = (side // edge // 2 * edge for side in size)
    return Window(top=top, left=left, bottom=min(top + edge, size[0]), right=min(left + edge, size[1]))
