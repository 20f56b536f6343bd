"""CIFAR-10 from its original archives, unpacked or not: 60,000 RGB pictures of 32x32 (Krizhevsky, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html).

The page describes both formats: *python*, pickled dicts with `data` [rows, 3072] and `labels`; *binary*, rows of one
label byte and 3,072 pixel bytes. A row is red, green, blue, each 32 lines of 32.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from undertow.errors import DataError
from undertow.training.pictures import Pictures, Split
from undertow.training.safe_pickle import RefusedPickle, load_inert

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""By label, as in the archive's `batches.meta`; source document 002's example has them wrong (trap T12)."""

SIDE, CHANNELS = 32, 3
ROW = CHANNELS * SIDE * SIDE
PLACES = ("", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
LARGEST_BATCH_BYTES = 64 * 2**20
REMEDY = "unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz there, or name the archive itself"


def load_cifar10(place: Path, *, split: Split = "train") -> Pictures:
    """CIFAR-10 from a folder that holds the batches or an archive, or from the archive.

    Errors: `DataError` when there is none, when batches are missing, or when one is damaged or not plain data.
    """
    batches = _find(place, BATCHES[split])
    pixels, labels = zip(*(_read(path, name, content) for path, name, content in batches), strict=True)
    return Pictures(pixels=torch.cat(pixels), labels=torch.cat(labels), class_names=CLASS_NAMES)


def _find(place: Path, names: tuple[str, ...]) -> Iterator[tuple[Path, str, bytes]]:
    """(file, batch name, content) of every wanted batch, from the first place that has any."""
    if not place.exists():
        raise DataError(place, "there is no such file or folder", REMEDY)
    candidates = [place] if place.is_file() else [place / name for name in PLACES]
    for candidate in candidates:
        found = _archived(candidate, names) if candidate.is_file() else _unpacked(candidate, names)
        if not found:
            continue
        if missing := [name for name in names if name not in found]:
            raise DataError(candidate, f"CIFAR-10 without {', '.join(missing)}", "get the whole archive again")
        return ((candidate, name, found[name]) for name in names)
    raise DataError(place, f"no CIFAR-10 found (files like {names[0]} or {names[0]}.bin)", REMEDY)


def _unpacked(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    files = {name: file for name in names for file in (folder / f"{name}.bin", folder / name) if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items()}


def _archived(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read by name, in memory: nothing is unpacked to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = re.sub(r"\.bin$", "", Path(member.name).name)
                stream = tar.extractfile(member) if name in names and member.isfile() else None
                if stream is not None and member.size <= LARGEST_BATCH_BYTES:
                    found[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as err:
        raise DataError(archive, f"not a readable tar archive ({err})", "download it again") from err
    return found


def _read(path: Path, name: str, content: bytes) -> tuple[UInt8[Tensor, "rows 3 32 32"], Tensor]:
    """Pixels and labels of one batch; a pickle is told from binary rows by its first byte, its protocol mark."""
    try:
        rows, labels = _read_pickle(content) if content[:1] == b"\x80" else _read_binary(content)
    except (RefusedPickle, ValueError) as err:
        raise DataError(path, f"{name} is not a CIFAR-10 batch: {err}", "get the archive again") from err
    if len(rows) == 0 or labels.max() >= len(CLASS_NAMES):
        raise DataError(path, f"{name} is empty or has labels above 9", "CIFAR-100 and other sets are not CIFAR-10")
    pixels = torch.from_numpy(rows.copy()).reshape(-1, CHANNELS, SIDE, SIDE)
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _read_pickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = load_inert(content)
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dict")
    rows, labels = (batch.get(key, batch.get(key.decode())) for key in (b"data", b"labels"))
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != ROW:
        raise ValueError(f"its `data` is not [rows, {ROW}] bytes")
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(type(n) is int and n >= 0 for n in labels):
        raise ValueError("its `labels` are not one whole number per row")
    return rows, np.array(labels)


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(content) % (1 + ROW):
        raise ValueError(f"{len(content)} bytes are not whole rows of {1 + ROW}: it was truncated")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + ROW)
    return rows[:, 1:], rows[:, 0]
