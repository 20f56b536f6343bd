"""What recipes write: folders of pictures with captions, as `undertow train` reads them, and tensors between stages."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from undertow.checkpoints.files.atomic import write_text
from undertow.training.captions import METADATA
from undertow.training.figures import save_picture


def write_captioned(pictures: UInt8[Tensor, "count 3 side side"], captions: Sequence[str], folder: Path) -> None:
    """Writes the pictures, and what each of them shows."""
    names = write_pictures(pictures, folder)
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in zip(names, captions, strict=True)]
    write_text("\n".join(lines) + "\n", folder / METADATA)


def write_pictures(pictures: UInt8[Tensor, "count 3 side side"], folder: Path) -> list[str]:
    """Writes the pictures under the numbers of their places; returns the names of their files."""
    names = [f"{index:05d}.png" for index in range(len(pictures))]
    for picture, name in zip(pictures, names, strict=True):
        save_picture(picture, folder / name)
    return names


def save_whole(what: Mapping[str, Any], path: Path) -> None:
    """Writes what `torch.load` reads, as a whole or not at all."""
    draft = path.with_suffix(".part")
    torch.save(dict(what), draft)
    draft.rename(path)
