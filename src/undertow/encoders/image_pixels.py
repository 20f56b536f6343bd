"""Pictures as a CLIP vision network reads them: resized, cropped to the centre and normalized.

What transformers' CLIPImageProcessor does with Pillow, by the fields of its `preprocessor_config.json`; written out
because the class's name and its need of torchvision differ between versions of transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.errors import ConfigError, InvalidInput
from undertow.pictures.modes import to_rgb

Pixels = Float[Tensor, "images 3 height width"]
RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, in [0, 1]."""

MOST_ELONGATED = 64
"""Longer sides would be resized to pictures of which the crop shows almost nothing, in much memory."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """size: the shorter side before the crop; or (height, width), to which a picture is stretched; `None` leaves it.
    crop: height and width of what is cut from the centre, `None` for all. resample: Pillow's filter."""

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int = Image.Resampling.BICUBIC
    rescale: float = 1 / 255
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD

    @classmethod
    def square(cls, side: int) -> "Preprocessing":
        """CLIP's own, for a network that reads `side` x `side` pixels."""
        return cls(size=side, crop=(side, side))

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any], side: int) -> "Preprocessing":
        """What a `preprocessor_config.json` says; `side` where it says nothing.

        Errors: `ConfigError` for sizes that cannot be read and for those that do not end in `side` x `side`.
        """
        resizes, crops = config.get("do_resize", True), config.get("do_center_crop", True)
        size = _shorter_side_or_both(config.get("size", side)) if resizes else None
        crop = _both(config.get("crop_size", side)) if crops else None
        made = size if crop is None and isinstance(size, tuple) else crop
        if made != (side, side):
            raise ConfigError(
                "crop_size", config.get("crop_size"), f"must give the {side} x {side} pixels that the network reads"
            )
        normalizes = config.get("do_normalize", True)
        resample = config.get("resample", Image.Resampling.BICUBIC)
        if resample not in list(Image.Resampling):
            raise ConfigError("resample", resample, f"must be one of Pillow's filters, {[*map(int, Image.Resampling)]}")
        return cls(
            size=size,
            crop=crop,
            resample=int(resample),
            rescale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=_rgb("image_mean", config.get("image_mean", CLIP_MEAN)) if normalizes else (0.0, 0.0, 0.0),
            std=_rgb("image_std", config.get("image_std", CLIP_STD)) if normalizes else (1.0, 1.0, 1.0),
        )

    def pixels(self, pictures: Sequence[Image.Image]) -> Pixels:
        """The pictures as one batch, transparency on white. Errors: `InvalidInput` for what is no readable picture."""
        if not pictures:
            raise InvalidInput("pictures", "none", "at least one")
        arrays = [np.asarray(self._framed(_rgb_picture(picture, i))) for i, picture in enumerate(pictures)]
        raw = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() * self.rescale
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (raw - mean) / std

    def _framed(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        match self.size:
            case int(side):
                shorter = min(width, height)
                picture = picture.resize((side * width // shorter, side * height // shorter), self.resample)
            case (high, wide):
                picture = picture.resize((wide, high), self.resample)
            case None:
                pass
        if self.crop is None:
            return picture
        width, height = picture.size
        left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
        # Pillow fills with black what lies outside of a picture that is smaller than the crop.
        return picture.crop((left, top, left + self.crop[1], top + self.crop[0]))


def _rgb_picture(picture: object, index: int) -> Image.Image:
    name = f"pictures[{index}]"
    if not isinstance(picture, Image.Image):
        raise InvalidInput(name, f"a {type(picture).__name__}", "a PIL image", "open files with PIL.Image.open")
    shorter, longer = sorted(picture.size)
    if shorter == 0 or longer > MOST_ELONGATED * shorter:
        size = f"{picture.size[0]} x {picture.size[1]} pixels"
        raise InvalidInput(name, size, f"a picture at most {MOST_ELONGATED} times as long as it is wide")
    return to_rgb(picture, name)


def _shorter_side_or_both(size: object) -> int | tuple[int, int]:
    match size:
        case int(side) | {"shortest_edge": int(side)}:
            return side
        case _:
            return _both(size)


def _both(size: object) -> tuple[int, int]:
    match size:
        case int(side):
            return side, side
        case {"height": int(height), "width": int(width)}:
            return height, width
        case _:
            raise ConfigError("size, crop_size", size, "must be a number, a shortest_edge, or a height and a width")


def _rgb(field: str, numbers: object) -> RGB:
    match numbers:
        case [int() | float() as red, int() | float() as green, int() | float() as blue]:
            return float(red), float(green), float(blue)
        case _:
            raise ConfigError(field, numbers, "must be three numbers")
