"""Writes a safetensors file one tensor at a time, in the memory of the largest tensor.

The library's `save_file` needs all tensors at once. The format is a length, a JSON header and the data
(https://huggingface.co/docs/safetensors, "Format"); the library opens the result before it replaces the destination.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from undertow.checkpoints.files.atomic import atomic_write
from undertow.checkpoints.files.dtypes import tensor_info
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.header_json import METADATA
from undertow.checkpoints.files.scaled import CONFIG, layer_config
from undertow.checkpoints.files.sniff import LENGTH_BYTES
from undertow.checkpoints.files.weights import open_weights
from undertow.nn.quantized import STORED
from undertow.nn.quantized import quantized as quantized_numbers
from undertow.quantization import Scheme
from undertow.shapes import AnyTensor

ALIGNMENT = 8


def write_stream(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], AnyTensor],
    metadata: Mapping[str, str],
    quantized: Mapping[str, Scheme] = MappingProxyType({}),
) -> None:
    """Writes the file at `path` atomically. read: reads a tensor by name, in the type and shape that `tensors` says.
    quantized: layers whose weights become codes, beside scales and a description (`files.scaled`)."""
    tensors, read = _with_codes(tensors, read, quantized)
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


def _with_codes(
    tensors: Mapping[str, TensorInfo], read: Callable[[str], AnyTensor], layers: Mapping[str, Scheme]
) -> tuple[Mapping[str, TensorInfo], Callable[[str], AnyTensor]]:
    """The same with codes, scales and descriptions. Scales come before codes in a file, so each weight is read twice,
    and never two of them at a time."""
    made: dict[str, Callable[[], AnyTensor]] = {}
    found = dict(tensors)
    for layer, scheme in layers.items():
        weight, config = f"{layer}.weight", torch.frombuffer(bytearray(layer_config(scheme)), dtype=torch.uint8)
        shape = tensors[weight].shape
        found[weight] = tensor_info(STORED[scheme], shape)
        found[f"{layer}.weight_scale"] = tensor_info(torch.float32, (shape[0], 1))
        found[f"{layer}.{CONFIG}"] = tensor_info(torch.uint8, tuple(config.shape))
        made[weight] = lambda weight=weight, scheme=scheme: quantized_numbers(read(weight), scheme)[0]
        made[f"{layer}.weight_scale"] = lambda weight=weight, scheme=scheme: quantized_numbers(read(weight), scheme)[1]
        made[f"{layer}.{CONFIG}"] = lambda config=config: config
    return found, lambda name: made[name]() if name in made else read(name)


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
