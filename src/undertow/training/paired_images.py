"""Images that are paired with the training images: the hints that a ControlNet follows, the references of an image
prompt. They are read from a folder with files of the same names, or computed from the training images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from undertow.errors import DataError
from undertow.hints.preprocessors import PREPROCESSORS, require_hint
from undertow.pictures.files import ENDINGS
from undertow.training.captioned import CaptionedPictures, captioned_files
from undertow.training.captions import SHOWN
from undertow.training.image_folder import read_picture, square

PairedImages = UInt8[Tensor, "count 3 size size"]


def hints_for(pictures: CaptionedPictures, hint: str, folder: Path) -> PairedImages:
    """Returns a hint for each training image.

    hint: one of `PREPROCESSORS`, or a folder with a hint for each image of `folder`, which is resized and cropped as
    its image was. Errors: `InvalidInput`, `DataError`, `MissingDependency`.
    """
    require_hint("hint", hint)
    preprocessor = PREPROCESSORS.get(hint)
    if preprocessor is not None:
        return torch.stack([preprocess(picture, preprocessor) for picture in pictures.pixels])
    return load_paired_images(Path(hint), folder, size=pictures.size)


def preprocess(
    picture: UInt8[Tensor, "3 size size"], preprocessor: Callable[[Image.Image], Image.Image]
) -> UInt8[Tensor, "3 size size"]:
    """Applies a preprocessor to an image and returns the result in RGB."""
    made = preprocessor(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())).convert("RGB")
    return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1)


def load_paired_images(folder: Path, pictures: Path, *, size: int) -> PairedImages:
    """Loads the images in `folder` that have the names of those in `pictures`, in their order; endings may differ.

    Errors: `DataError` names what is missing, ambiguous, or cannot be read.
    """
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder", f"name a folder with a file for each of {pictures}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS:
            found.setdefault(path.stem, []).append(path)
    wanted = [path.stem for path in captioned_files(pictures)]
    if missing := [stem for stem in wanted if stem not in found]:
        raise DataError(folder, f"nothing in it for {_some(missing)} of {pictures}", "add files of the same names")
    if several := [stem for stem in wanted if len(found[stem]) > 1]:
        raise DataError(folder, f"several files in it for {_some(several)}", "keep one of each")
    read = {stem: read_picture(found[stem][0]) for stem in wanted}
    if bad := [f"{stem} ({why})" for stem, why in read.items() if isinstance(why, str)]:
        raise DataError(folder, f"cannot be read: {_some(bad)}", "repair or replace")
    good = [read[stem] for stem in wanted]
    return torch.from_numpy(np.stack([square(picture, size, 3) for picture in good if not isinstance(picture, str)]))


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
