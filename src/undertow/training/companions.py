"""Pictures that belong to training pictures, one to each: hints that a ControlNet follows, references of an image
prompt. From a folder with files of the same names, or made out of the pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from undertow.errors import DataError, InvalidInput
from undertow.hints.blur import blur, tile
from undertow.hints.edges import canny, line_art, scribble, soft_edges
from undertow.training.captioned import CaptionedPictures, captioned_files
from undertow.training.image_folder import ENDINGS, SHOWN, read_picture, square

MAKERS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "soft-edges": soft_edges,
    "scribble": scribble,
    "lineart": line_art,
    "tile": tile,
    "blur": blur,
}
"""Preprocessors with their own settings, as `undertow preprocess` has them."""

Companions = UInt8[Tensor, "count 3 size size"]


def hints_for(pictures: CaptionedPictures, hint: str, folder: Path) -> Companions:
    """A hint for each picture. hint: one of `MAKERS`, or a folder with a hint for each picture of `folder`, which is
    resized and cropped as its picture was. Errors: `InvalidInput`, `DataError`, `MissingDependency`."""
    maker = MAKERS.get(hint)
    if maker is not None:
        return torch.stack([made_from(picture, maker) for picture in pictures.pixels])
    if not Path(hint).is_dir():
        raise InvalidInput("hint", repr(hint), f"{', '.join(MAKERS)}, or a folder of hints", "there is no such folder")
    return load_companions(Path(hint), folder, size=pictures.size)


def made_from(
    picture: UInt8[Tensor, "3 size size"], maker: Callable[[Image.Image], Image.Image]
) -> UInt8[Tensor, "3 size size"]:
    """What a preprocessor makes of a picture, as RGB."""
    made = maker(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())).convert("RGB")
    return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1)


def load_companions(companions: Path, pictures: Path, *, size: int) -> Companions:
    """The pictures in `companions` with the names of those in `pictures`, whatever their endings, in their order.

    Errors: `DataError` names what is missing, ambiguous, or cannot be read.
    """
    if not companions.is_dir():
        raise DataError(companions, "there is no such folder", f"name a folder with a file for each of {pictures}")
    found: dict[str, list[Path]] = {}
    for path in sorted(companions.iterdir()):
        if path.suffix.lower() in ENDINGS:
            found.setdefault(path.stem, []).append(path)
    wanted = [path.stem for path in captioned_files(pictures)]
    if missing := [stem for stem in wanted if stem not in found]:
        raise DataError(companions, f"nothing in it for {_some(missing)} of {pictures}", "add files of the same names")
    if several := [stem for stem in wanted if len(found[stem]) > 1]:
        raise DataError(companions, f"several files in it for {_some(several)}", "keep one of each")
    read = {stem: read_picture(found[stem][0]) for stem in wanted}
    if bad := [f"{stem} ({why})" for stem, why in read.items() if isinstance(why, str)]:
        raise DataError(companions, f"cannot be read: {_some(bad)}", "repair or replace")
    good = [read[stem] for stem in wanted]
    return torch.from_numpy(np.stack([square(picture, size, 3) for picture in good if not isinstance(picture, str)]))


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
