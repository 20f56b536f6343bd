"""Any folder of pictures with one sub-folder per class."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from undertow.errors import DataError, InvalidInput
from undertow.pictures.files import ENDINGS, open_picture
from undertow.pictures.modes import to_rgb
from undertow.training.captions import SHOWN
from undertow.training.pictures import Pictures


def load_image_folder(folder: Path, *, size: int, channels: int = 3, bad_pictures: str = "refuse") -> Pictures:
    """`folder/<class>/<picture>`, classes in alphabetical order, each picture resized and cropped to its center square.

    Any Pillow mode is converted: gray, palette, 16 bit, CMYK; transparent parts become white. Files that are no
    pictures by their ending are not looked at. channels: 1 or 3. bad_pictures: a picture that cannot be decoded either
    refuses the folder ("refuse"), or is left out and listed in `Pictures.skipped` ("skip"). Errors: `InvalidInput`,
    `DataError`.
    """
    if size < 4:
        raise InvalidInput("size", size, "at least 4 pixels")
    files = _labeled_files(folder)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
        decoded = list(pool.map(lambda entry: _decode(entry[0], size, channels), files))
    bad = [file for (file, _), picture in zip(files, decoded, strict=True) if isinstance(picture, str)]
    if bad and bad_pictures == "refuse":
        problems = (f"{path.relative_to(folder)} ({why})" for path, why in _first_bad(files, decoded))
        rest = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(
            folder,
            f"{len(bad)} of {len(files)} pictures cannot be read: {', '.join(problems)}{rest}",
            "repair or remove them, or leave them out with bad_pictures='skip' (--bad-pictures skip)",
        )
    good = [
        (picture, label) for picture, (_, label) in zip(decoded, files, strict=True) if not isinstance(picture, str)
    ]
    names = tuple(sorted({file.parent.name for file, _ in files}))
    if emptied := [name for label, name in enumerate(names) if label not in {label for _, label in good}]:
        raise DataError(folder, f"no picture of class {', '.join(emptied)} can be read", "repair or remove the class")
    return Pictures(
        pixels=torch.from_numpy(np.stack([picture for picture, _ in good])),
        labels=torch.tensor([label for _, label in good]),
        class_names=names,
        skipped=tuple(bad),
    )


def _labeled_files(folder: Path) -> list[tuple[Path, int]]:
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder", "name a folder with one sub-folder of pictures per class")
    classes: dict[str, list[Path]] = {}
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        classes[sub.name] = sorted(path for path in sub.iterdir() if path.suffix.lower() in ENDINGS)
    if not classes:
        raise DataError(folder, "no sub-folders", "put each class's pictures into a sub-folder of its name")
    if empty := [name for name, files in classes.items() if not files]:
        endings = ", ".join(sorted(ENDINGS))
        raise DataError(
            folder, f"no pictures in {', '.join(empty)}", f"pictures end in {endings}; remove empty classes"
        )
    return [(file, label) for label, files in enumerate(classes.values()) for file in files]


def _decode(file: Path, size: int, channels: int) -> np.ndarray | str:
    """[channels, size, size] bytes, or what is wrong with the file."""
    picture = read_picture(file)
    return picture if isinstance(picture, str) else square(picture, size, channels)


def read_picture(file: Path) -> Image.Image | str:
    """The picture upright and opaque, in RGB, or what is wrong with the file."""
    try:
        return to_rgb(open_picture("picture", file))
    except InvalidInput as err:
        return str(err).removeprefix(f"picture is {file}, ")


def square(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """The picture's center square as [channels, size, size] bytes."""
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted.convert("L" if channels == 1 else "RGB"))
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def _first_bad(files: Sequence[tuple[Path, int]], decoded: Sequence[np.ndarray | str]) -> list[tuple[Path, str]]:
    bad = [(file, found) for (file, _), found in zip(files, decoded, strict=True) if isinstance(found, str)]
    return bad[:SHOWN]
