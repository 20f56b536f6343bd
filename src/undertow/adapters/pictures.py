"""Pictures that come with an adapter, brought to a grid."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.pictures.pixels import to_mask, to_pixels

SAME_SHAPE = 0.02
"""By how much the ratio of a picture's sides may differ from the grid' before stretching it would show."""

Hint = Float[Tensor, "1 3 height width"]
Area = Float[Tensor, "1 1 height width"]
Tile = Float[Tensor, "rows channels tile_height tile_width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentGrid:
    """The size of the latents, and the windows in which the network sees them. cells: height and width of the latents.
    factor: pixels per cell. windows, pixel_windows: cut a map of cells, or of pixels, into windows."""

    cells: tuple[int, int]
    factor: int
    windows: Callable[[Tensor], list[Tile]] = lambda grid: [grid]
    pixel_windows: Callable[[Tensor], list[Tile]] = lambda grid: [grid]

    @property
    def pixels(self) -> tuple[int, int]:
        return self.cells[0] * self.factor, self.cells[1] * self.factor

    def hint(self, title: str, picture: Image.Image) -> Hint:
        """A control map at the size of the picture, RGB in [0, 1]. Errors: `InvalidInput` for another aspect ratio."""
        self._require_shape(f"image of {title}", picture)
        return (to_pixels(picture, self.pixels) + 1) / 2

    def area(self, title: str, picture: Image.Image) -> Area:
        """A mask at the size of the picture, 1 where it is white. Errors: `InvalidInput` for another aspect ratio, and
        for a mask that is black everywhere."""
        self._require_shape(f"mask of {title}", picture)
        area = to_mask(picture, self.pixels)
        if not area.any():
            raise InvalidInput(
                f"mask of {title}", "black everywhere", "white where it acts", "or leave the adapter out"
            )
        return area

    def _require_shape(self, name: str, picture: Image.Image) -> None:
        (height, width), given = self.pixels, picture.width / picture.height
        if abs(given * height / width - 1) > SAME_SHAPE:
            raise InvalidInput(
                name,
                f"{picture.width}x{picture.height}",
                f"the shape of the picture to draw, {width}x{height}",
                "crop or pad it (`undertow preprocess grid`), or give `size`",
            )
