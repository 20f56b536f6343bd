"""GGUF files for tests, written by the package `gguf` as stable-diffusion.cpp and ComfyUI-GGUF write theirs."""

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

UNQUANTIZED = (Kind.F32, Kind.F16, Kind.BF16)


def kind_for(tensor: Tensor, kind: Kind, *, otherwise: Kind = Kind.F16) -> Kind:
    """The type for a tensor: quantized only if it is a matrix, and its rows are whole blocks, as stable-diffusion.cpp
    decides."""
    whole = tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 if tensor.ndim else False
    return kind if tensor.ndim >= 2 and whole else otherwise


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor],
    kind: Kind,
    *,
    metadata: Mapping[str, str] | None = None,
    architecture: str | None = None,
    rows: int | None = None,
) -> dict[str, Tensor]:
    """Writes the file, and returns the numbers that the package says are in it. architecture: without it nothing is
    said, as by stable-diffusion.cpp. rows: convolutions become rows of this length, with their shape beside them."""
    writer = gguf.GGUFWriter(path, architecture or "")
    if architecture is None:
        writer.kv_data[0].clear()
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    expected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        flat = tensor.float()
        if rows is not None and tensor.ndim == 4 and tensor.numel() % rows == 0:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
            flat = flat.reshape(-1, rows)
        chosen = kind_for(flat, kind)
        data = gguf.quants.quantize(flat.numpy(), chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(data, chosen).astype(np.float32)).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def text(value: str | bytes) -> bytes:
    """A text as it stands in a header."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(key: str, words: str) -> bytes:
    """An entry of metadata that is a text."""
    return text(key) + struct.pack("<I", 8) + text(words)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    """The entry of a tensor; shape: in ggml's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    *entries: bytes,
    values: tuple[bytes, ...] = (),
    version: int = 3,
    tensors: int | None = None,
    keys: int | None = None,
) -> bytes:
    """A header byte by byte. tensors, keys: how many there are said to be."""
    counts = (len(entries) if tensors is None else tensors, len(values) if keys is None else keys)
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(values) + b"".join(entries)
