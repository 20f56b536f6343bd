"""A folder of pictures with captions, from which a text-to-image model learns; `captions.py` says where those are."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.errors import DataError, InvalidInput
from undertow.training.captions import find_captions, some
from undertow.training.image_folder import read_picture, square


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How a training picture was cut out of its file: height and width of the file's picture, and the position of the
    cut's top left corner in the resized picture, in pixels."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedPictures:
    """Square pictures as bytes, with a caption each. rule: where the captions are from, in words. without_picture:
    files with captions, left over."""

    pixels: UInt8[Tensor, "count 3 size size"]
    captions: tuple[str, ...]
    crops: tuple[Crop, ...]
    rule: str = ""
    without_picture: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def size(self) -> int:
        """The length of a side in pixels."""
        return self.pixels.shape[-1]


def load_captioned(folder: Path, *, size: int) -> CaptionedPictures:
    """Reads the pictures of `folder`, each resized and cropped to its center square, with their captions.

    Every mode of Pillow is converted to RGB, and transparent parts become white. Errors: `InvalidInput` for the size;
    `DataError` names pictures that cannot be read or have no caption.
    """
    if size < 8:
        raise InvalidInput("size", size, "at least 8 pixels")
    found = find_captions(folder)
    captions = found.texts
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
        read = list(pool.map(lambda file: _read(file, size), captions))
    bad = [(file, why) for file, why in zip(captions, read, strict=True) if isinstance(why, str)]
    if bad:
        names = [f"{file.relative_to(folder)} ({why})" for file, why in bad]
        raise DataError(folder, f"{len(bad)} of {len(read)} pictures cannot be read: {some(names)}", "repair or remove")
    good = [each for each in read if not isinstance(each, str)]
    return CaptionedPictures(
        pixels=torch.from_numpy(np.stack([pixels for pixels, _ in good])),
        captions=tuple(captions.values()),
        crops=tuple(crop for _, crop in good),
        rule=found.rule,
        without_picture=tuple(found.without_picture),
    )


def captioned_files(folder: Path) -> tuple[Path, ...]:
    """Returns the files of the pictures that `load_captioned` reads, in the same order. Errors: `DataError`."""
    return tuple(find_captions(folder).texts)


def caption_notes(model: LoadedModel, pictures: CaptionedPictures) -> list[str]:
    """Returns what a user should know before a training begins: how many captions there are, where they were found,
    which have no picture, and, for a model with a vocabulary of its own, what of them it reads by name and which words
    it never learned."""
    notes = [f"{len(pictures)} captions {pictures.rule}, such as {pictures.captions[0][:60]!r}"]
    if pictures.without_picture:
        count = len(pictures.without_picture)
        notes.append(f"{count} captions have no picture beside them and are not used: {some(pictures.without_picture)}")
    return [*notes, *model.require_text().notes_on(pictures.captions)]


def _read(file: Path, size: int) -> tuple[np.ndarray, Crop] | str:
    picture = read_picture(file)
    return picture if isinstance(picture, str) else (square(picture, size, 3), _crop(picture, size))


def _crop(picture: Image.Image, size: int) -> Crop:
    scale = size / min(picture.size)
    top, left = (round((length * scale - size) / 2) for length in (picture.height, picture.width))
    return Crop(height=picture.height, width=picture.width, top=top, left=left)
