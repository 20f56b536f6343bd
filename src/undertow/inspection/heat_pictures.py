"""Heat over pictures, and sheets of them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from undertow.inspection.contact_sheet import Cell, contact_sheet

ANCHORS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colors of matplotlib's "inferno" at equal distances, from cold to hot: as bright as they are hot, also in print."""

LEAST_SIDE = 192
"""Pixels that the shorter side of an overlay has at least, so that cells and words can be seen."""

COLUMNS = 6
"""Of a sheet."""


def heat_colors(heat: Float[np.ndarray, "height width"], hottest: float) -> UInt8[np.ndarray, "height width 3"]:
    """The heat as colors, from 0 to `hottest`."""
    share = np.clip(np.nan_to_num(heat / max(hottest, np.finfo(np.float32).tiny)), 0, 1)
    steps = np.linspace(0, 1, len(ANCHORS))
    channels = [np.interp(share, steps, [color[channel] for color in ANCHORS]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlaid(image: Image.Image, heat: Float[np.ndarray, "height width"], *, strength: float = 0.65) -> Image.Image:
    """The picture in gray, with the heat over it: what is not attended to is dark. Small pictures are enlarged."""
    factor = max(1, -(-LEAST_SIDE // min(image.size)))
    size = (image.width * factor, image.height * factor)
    gray = image.convert("L").convert("RGB").resize(size, Image.Resampling.NEAREST)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return Image.blend(gray, Image.fromarray(heat_colors(np.asarray(smooth), float(heat.max()))), strength)


def sheet_of(cells: Sequence[tuple[str, Image.Image, str]], title: str = "") -> Image.Image:
    """Pictures side by side in rows of `COLUMNS`, each with its name and a line below it."""
    named = [Cell(image=image, caption=f"{name}  {caption}" if caption else name) for name, image, caption in cells]
    rows = [named[start : start + COLUMNS] for start in range(0, len(named), COLUMNS)]
    blank = Cell(image=Image.new("RGB", named[0].image.size, "white"))
    filled = [[*row, *[blank] * (min(COLUMNS, len(named)) - len(row))] for row in rows]
    return contact_sheet(filled, rows=[""] * len(rows), columns=[""] * len(filled[0]), title=title)
