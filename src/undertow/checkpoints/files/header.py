"""The header of a safetensors file: names, types, shapes and places, read in milliseconds and validated.

As in the safetensors library, tensors follow each other without overlaps and holes up to the file's end; stricter than
there, a header has at most 16 MiB and each name once (https://huggingface.co/docs/safetensors, "Format"). Nothing else
of the file is read, so that one larger than memory can be inspected; nor is torch imported, so that `undertow plan`
answers at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undertow.checkpoints.files.header_json import corrupt, read_header_json
from undertow.errors import UnknownCheckpoint

if TYPE_CHECKING:
    import torch

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
class Packed:
    """How quantized numbers are stored. name: as their format calls it. bits: of a number, its part of the scales
    included."""

    name: str
    bits: float


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor. kind: its type, as the format calls it; of quantized numbers, the type that
    they become unless another one is asked for. packed: how these are stored; they are read in float32."""

    kind: str
    shape: tuple[int, ...]
    packed: Packed | None = None

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
    entries, metadata, start = read_header_json(path)
    tensors = {name: _info(path, name, entry) for name, entry in entries.items()}
    offsets = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
    _require_whole(path, tensors, offsets, path.stat().st_size - start)
    return Header(tensors=tensors, places={name: start + offsets[name][0] for name in tensors}, metadata=metadata)


def _require_whole(
    path: Path, tensors: Mapping[str, TensorInfo], offsets: Mapping[str, tuple[int, int]], data_bytes: int
) -> None:
    """Tensors of the size that type and shape say, one behind the other, up to the end of the file."""
    position = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != position or end - begin != tensors[name].size_bytes:
            what = "does not begin where the one before it ends" if begin != position else "has not the size it needs"
            raise corrupt(path, f"not a whole safetensors file: the tensor {name!r} {what}")
        position = end
    if position != data_bytes:
        said = f"its tensors have {position:,} bytes, and {data_bytes:,} are there"
        raise corrupt(path, f"not a whole safetensors file: {said}")


def _info(path: Path, name: str, entry: Any) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(), int()]} if all(
            isinstance(dim, int) and not isinstance(dim, bool) and dim >= 0 for dim in shape
        ):
            info = TensorInfo(dtype, tuple(shape))
            require_known(path, {name: info})
            return info
        case _:
            raise corrupt(path, f"an impossible header entry for the tensor {name!r}")


def require_known(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Errors: `UnknownCheckpoint` for a type of numbers that undertow does not read."""
    for name, info in tensors.items():
        if info.kind not in ITEM_BYTES:
            known = f"undertow reads {', '.join(ITEM_BYTES)}"
            raise UnknownCheckpoint(path, f"the tensor {name!r} has the type {info.kind!r}", known)
