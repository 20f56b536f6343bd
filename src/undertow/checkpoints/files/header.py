"""The header of a safetensors file: names, types, shapes and places, read in milliseconds and validated.

As in the safetensors library, tensors follow each other without overlaps and holes up to the file's end; stricter than
there, a header has at most 16 MiB and each name once (https://huggingface.co/docs/safetensors, "Format"). Nothing else
of the file is read, so that one larger than memory can be inspected; nor is torch imported, so that `undertow plan`
answers at once.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undertow.checkpoints.files.sniff import LENGTH_BYTES, require_safetensors
from undertow.errors import CorruptFile, UnknownCheckpoint

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 50_000
MAX_NAME = 1000
"""Characters of a tensor's name. The longest in use have 150."""
METADATA = "__metadata__"

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of a number, by the format's names of the types that occur in checkpoints; `dtypes.DTYPES` has torch's."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor. kind: its type, as the format calls it."""

    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> "torch.dtype":
        """The type as torch has it."""
        from undertow.checkpoints.files.dtypes import DTYPES  # noqa: PLC0415  imports torch

        return DTYPES[self.kind]

    @property
    def count(self) -> int:
        """Number of elements; 0 for a marker, 1 for a scalar."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.count * ITEM_BYTES[self.kind]


@dataclass(frozen=True)
class Header:
    """places: where each tensor begins, in bytes from the start of the file. metadata: untrusted text; parse it only
    when it is needed, and escape it when it is shown."""

    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, int]
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HeaderOnly:
    """A file of which nothing but the header is here."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def stored_kind(tensors: Iterable[TensorInfo]) -> str | None:
    """The floating-point type that most values have, as the format calls it; `None` where there are none."""
    counts: dict[str, int] = {}
    for info in tensors:
        if "F" in info.kind:
            counts[info.kind] = counts.get(info.kind, 0) + info.count
    return max(counts, key=lambda kind: counts[kind], default=None)


def read_header(path: Path) -> Header:
    """Reads names, types, shapes and places. Errors: `UnknownCheckpoint`, `UnsafeFile`, `CorruptFile`."""
    require_safetensors(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise _corrupt(path, f"a header of {length:,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        if LENGTH_BYTES + length > size:
            raise _corrupt(path, f"cut off: a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateName as err:
        raise _corrupt(path, f"the name {str(err)!r} occurs twice in its header") from err
    except (ValueError, RecursionError) as err:
        raise _corrupt(path, f"a header that is not JSON ({err})") from err
    if not isinstance(entries, dict):
        raise _corrupt(path, f"a header that is a JSON {type(entries).__name__}, not an object")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "metadata that is not text")
    longest = max(map(len, entries), default=0)
    if longest > MAX_NAME:
        raise _corrupt(path, f"a tensor's name of {longest:,} characters; {MAX_NAME:,} are allowed")
    if len(entries) > MAX_TENSORS:
        raise _corrupt(path, f"{len(entries):,} tensors; {MAX_TENSORS:,} are allowed")
    tensors = {name: _info(path, name, entry) for name, entry in entries.items()}
    offsets = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
    start = LENGTH_BYTES + length
    _require_whole(path, tensors, offsets, size - start)
    return Header(tensors=tensors, places={name: start + offsets[name][0] for name in tensors}, metadata=metadata)


def _require_whole(
    path: Path, tensors: Mapping[str, TensorInfo], offsets: Mapping[str, tuple[int, int]], data_bytes: int
) -> None:
    """Tensors of the size that type and shape say, one behind the other, up to the end of the file."""
    position = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != position or end - begin != tensors[name].size_bytes:
            what = "does not begin where the one before it ends" if begin != position else "has not the size it needs"
            raise _corrupt(path, f"not a whole safetensors file: the tensor {name!r} {what}")
        position = end
    if position != data_bytes:
        said = f"its tensors have {position:,} bytes, and {data_bytes:,} are there"
        raise _corrupt(path, f"not a whole safetensors file: {said}")


def _info(path: Path, name: str, entry: Any) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(), int()]} if all(
            isinstance(dim, int) and not isinstance(dim, bool) and dim >= 0 for dim in shape
        ):
            info = TensorInfo(dtype, tuple(shape))
            require_known(path, {name: info})
            return info
        case _:
            raise _corrupt(path, f"an impossible header entry for the tensor {name!r}")


def require_known(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Errors: `UnknownCheckpoint` for a type of numbers that undertow does not read."""
    for name, info in tensors.items():
        if info.kind not in ITEM_BYTES:
            known = f"undertow reads {', '.join(ITEM_BYTES)}"
            raise UnknownCheckpoint(path, f"the tensor {name!r} has the type {info.kind!r}", known)


class _DuplicateName(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateName(name)
        found[name] = value
    return found


def _corrupt(path: Path, problem: str) -> CorruptFile:
    return CorruptFile(path, problem, "copy or download it again")
