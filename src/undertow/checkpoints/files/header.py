"""The header of a safetensors file: names, types, shapes and places, read in milliseconds and validated.

As in the safetensors library, tensors follow each other without overlaps and holes up to the file's end; stricter than
there, a header has at most 16 MiB and each name once (https://huggingface.co/docs/safetensors, "Format"). Nothing else
of the file is read, so that one larger than memory can be inspected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from undertow.checkpoints.files.header_json import corrupt, read_header_json
from undertow.errors import UnknownCheckpoint

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names for the types that occur in checkpoints."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements; 0 for a marker, 1 for a scalar."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """places: where each tensor begins, in bytes from the start of the file. metadata: untrusted text; parse it only
    when it is needed, and escape it when it is shown."""

    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, int]
    metadata: Mapping[str, str]


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
            if dtype not in DTYPES:
                known = f"undertow reads {', '.join(DTYPES)}"
                raise UnknownCheckpoint(path, f"the tensor {name!r} has the type {dtype!r}", known)
            return TensorInfo(DTYPES[dtype], tuple(shape))
        case _:
            raise corrupt(path, f"an impossible header entry for the tensor {name!r}")
