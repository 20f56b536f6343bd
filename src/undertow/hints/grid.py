"""Pictures brought to sides that networks can halve: multiples of 8 for latents, of 64 for every Stable Diffusion."""

from typing import Literal

from PIL import Image, ImageColor, ImageOps

from undertow.errors import InvalidInput
from undertow.hints.picture import require, to_color
from undertow.limits import PIXELS

Fitting = Literal["fit", "crop", "pad"]


def to_grid(
    image: Image.Image,
    *,
    multiple: int = 64,
    fitting: Fitting = "crop",
    size: tuple[int, int] | None = None,
    fill: str = "black",
) -> Image.Image:
    """The picture with sides that are multiples of `multiple`.

    fitting: "fit" resizes all of it, which may stretch it; "crop" keeps its proportions and cuts the longer side, in
    the middle; "pad" keeps all of it and its proportions, with `fill` around it. size: width and height; those nearest
    to the picture's own when `None`. Errors: `InvalidInput`.
    """
    require("multiple", multiple, multiple >= 1, "at least 1 pixel")
    color = Image.fromarray(to_color(image))
    wanted = _nearest(color.size, multiple) if size is None else _checked(size, multiple)
    PIXELS.require("size", wanted[0] * wanted[1], f"{wanted[0]}x{wanted[1]}")
    match fitting:
        case "fit":
            return color.resize(wanted, Image.Resampling.LANCZOS)
        case "crop":
            return ImageOps.fit(color, wanted, Image.Resampling.LANCZOS)
        case "pad":
            return ImageOps.pad(color, wanted, Image.Resampling.LANCZOS, color=_color(fill))
        case _:
            raise InvalidInput("fitting", repr(fitting), "'fit', 'crop' or 'pad'")


def _nearest(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    width, height = (max(1, round(side / multiple)) * multiple for side in size)
    return width, height


def _checked(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    nearest = _nearest(size, multiple)
    if min(size) < 1 or nearest != size:
        raise InvalidInput(
            "size", f"{size[0]}x{size[1]}", f"multiples of {multiple}", f"{nearest[0]}x{nearest[1]} is near"
        )
    return size


def _color(name: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as err:
        raise InvalidInput("fill", repr(name), "a color", "for example white, or #808080") from err
