"""Writes a safetensors file one tensor at a time, in the memory of the largest tensor.

The library's `save_file` needs all tensors at once. The format is a length, a JSON header and the data
(https://huggingface.co/docs/safetensors, "Format"); the library opens the result before it replaces the destination.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from undertow.checkpoints.files.atomic import atomic_write
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.header_json import METADATA
from undertow.checkpoints.files.sniff import LENGTH_BYTES
from undertow.checkpoints.files.weights import open_weights
from undertow.shapes import AnyTensor

ALIGNMENT = 8


def write_stream(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], AnyTensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes the file at `path` atomically. read: reads a tensor by name, in the type and shape that `tensors` says."""
    # Largest items first keeps every tensor aligned to its own item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    with atomic_write(path) as draft:
        with draft.open("wb") as file:
            file.write(_header(names, tensors, metadata))
            for name in names:
                tensor = read(name).detach().to("cpu").contiguous()
                if tensor.dtype != tensors[name].dtype or tuple(tensor.shape) != tensors[name].shape:
                    raise AssertionError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {tensors[name]}")
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        open_weights(draft)


def _header(names: list[str], tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        end = position + tensors[name].size_bytes
        entries[name] = {
            "dtype": tensors[name].kind,
            "shape": list(tensors[name].shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
