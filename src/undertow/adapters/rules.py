"""What an adapter of each kind may be given, and what its pictures must be like. Imports no torch, so that a request is
refused at the door too; the kinds of adapters look closer."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from PIL import Image

from undertow.adapters.adapter import Adapter
from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.pictures.files import several
from undertow.pictures.modes import to_mask_picture
from undertow.unet.config import UNetConfig

SAME_SHAPE = 0.02
"""By how much the ratio of a picture's sides may differ from the grid's before stretching it would show."""


def require_no(field: str, adapter: Adapter, kind: str) -> None:
    """Rejects a field that this kind of adapter does not have. Errors: `InvalidInput`."""
    given = getattr(adapter, field)
    if given is not None:
        value = shown(given) if isinstance(given, str | float | int) else "given"
        raise InvalidInput(f"{field} of {adapter.title}", value, f"nothing for a {kind}")


def require_lora(adapter: Adapter, kind: str) -> None:
    """Errors: `InvalidInput` for fields that a LoRA does not have."""
    for field in ("image", "mask", "encoder"):
        require_no(field, adapter, kind)


def require_control(adapter: Adapter, kind: str, *, modes: bool) -> None:
    """modes: it knows control modes, as ControlNets do. Errors: `InvalidInput` for fields that a control network does
    not have."""
    masks = len(several(adapter.mask))
    if masks > 1:
        raise InvalidInput(f"mask of {adapter.title}", f"{masks} masks", "at most one")
    if adapter.control_mode != "balanced" and not modes:
        raise InvalidInput(f"control_mode of {adapter.title}", repr(adapter.control_mode), f"none for a {kind}")
    require_no("encoder", adapter, kind)
    require_no("text_scale", adapter, kind)


def require_masks(adapter: Adapter) -> None:
    """Errors: `InvalidInput` for masks that are not one for each picture."""
    masks, pictures = len(several(adapter.mask)), len(several(adapter.image))
    if masks and masks != pictures:
        raise InvalidInput(f"mask of {adapter.title}", f"{masks} masks", f"{pictures}, one for each image")


def require_shape(name: str, picture: Image.Image, pixels: tuple[int, int]) -> None:
    """pixels: height and width of the picture to draw. Errors: `InvalidInput` for another aspect ratio."""
    (height, width), given = pixels, picture.width / picture.height
    if abs(given * height / width - 1) > SAME_SHAPE:
        raise InvalidInput(
            name,
            f"{picture.width}x{picture.height}",
            f"the shape of the picture to draw, {width}x{height}",
            "crop or pad it (`undertow preprocess grid`), or give `size`",
        )


def require_white(name: str, mask: Image.Image) -> None:
    """Errors: `InvalidInput` for a mask that is black everywhere."""
    if not any(to_mask_picture(mask).getextrema()):
        raise InvalidInput(name, "black everywhere", "white where it acts", "or leave the adapter out")


def residual_names(unet: UNetConfig) -> tuple[str, ...]:
    """Of what a ControlNet adds: for every skip of the encoder that it is made of, and for the middle."""
    return (*(f"skips.{index}" for index in range(len(unet.skip_shapes(1, 1)))), "middle")


def require_blocks(adapter: Adapter, points: Sequence[str]) -> None:
    """points: names of the places where it can act. Errors: `InvalidInput` for a pattern that matches none."""
    for pattern in adapter.blocks or {}:
        if not any(fnmatchcase(point, pattern) for point in points):
            near = get_close_matches(pattern, points, 3)
            raise InvalidInput(
                f"blocks of {adapter.title}",
                repr(pattern),
                "a pattern of names where it acts",
                f"e.g. {', '.join(near or points[:3])}",
            )
