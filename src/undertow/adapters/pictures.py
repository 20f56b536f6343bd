"""Pictures that come with an adapter, brought to a grid."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.adapters.rules import require_shape, require_white
from undertow.pictures.pixels import to_mask, to_pixels

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
        require_shape(f"image of {title}", picture, self.pixels)
        return (to_pixels(picture, self.pixels) + 1) / 2

    def area(self, title: str, picture: Image.Image) -> Area:
        """A mask at the size of the picture, 1 where it is white. Errors: `InvalidInput` for another aspect ratio, and
        for a mask that is black everywhere."""
        require_shape(f"mask of {title}", picture, self.pixels)
        require_white(f"mask of {title}", picture)
        return to_mask(picture, self.pixels)
