"""Files for strangers' command lines, byte by byte."""

import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.checkpoints.crafted import ITEM_BYTES
from undertow.embedded import embedded_models

Json = dict[str, Any]


def safetensors(tensors: Mapping[str, tuple[Any, Any]], metadata: Json | None = None) -> bytes:
    """A file with these tensors, zeros all, by name: type and shape, which may be anything that JSON says."""
    header: Json = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in tensors.items():
        known = isinstance(shape, list) and all(isinstance(side, int) and 0 <= side < 10**6 for side in shape)
        item = ITEM_BYTES.get(dtype, 4) if isinstance(dtype, str) else 4
        size = prod(shape) * item if known and prod(shape) < 10**6 else 4
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return with_header(json.dumps(header).encode(), bytes(position))


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def lora(metadata: Json | None = None, **shapes: list[int]) -> bytes:
    """A LoRA for one layer of the embedded model. shapes: of its down, up and alpha instead of the right ones."""
    layer = "lora_unet_down_blocks_1_attentions_0_proj_in"
    right: Json = {"down": [1, 192, 1, 1], "up": [192, 1, 1, 1], "alpha": []}
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    tensors = {f"{layer}.{names[part]}": ("F32", shape) for part, shape in {**right, **shapes}.items()}
    return safetensors(tensors, metadata)


@cache
def embedded_text(name: str) -> str:
    return (embedded_models()["emoji"] / name).read_text(encoding="utf-8")


def embedded_json(name: str) -> Json:
    """A JSON file of the embedded model."""
    return json.loads(embedded_text(name))


def changed(name: str, **fields: Any) -> dict[str, bytes | None]:
    """A JSON file of the embedded model with some fields changed, as `Case.model` takes it."""
    return {name: json.dumps({**embedded_json(name), **fields}).encode()}


def picture(
    texts: Mapping[str, str] | None = None, size: tuple[int, int] = (64, 64), kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    """A small picture with texts inside it."""
    found, info = io.BytesIO(), PngInfo()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    Image.linear_gradient("L").resize(size).convert(mode).save(found, kind, **({"pnginfo": info} if texts else {}))
    return found.getvalue()


def described(request: Any = None, **fields: Any) -> bytes:
    """A picture of one step in which undertow would have written this description."""
    drawn = {"prompt": "apple", "steps": 1, "size": [64, 64]}
    request = {**drawn, **request} if isinstance(request, dict) else drawn if request is None else request
    return picture({"undertow": json.dumps({"request": request, "index": 0, "model": "emoji", **fields})})


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG file that says to have so many pixels, one bit each, and is as small as zlib can make them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    deflate = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    data = b"".join([deflate.compress(line) for _ in range(height)]) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def stride_zero_pickle(count: int) -> bytes:
    """A checkpoint whose only tensor has `count` numbers, all of them the same one in memory."""
    found = io.BytesIO()
    torch.save({"state_dict": {"model.diffusion_model.out.2.weight": torch.zeros(1).expand(count)}}, found)
    return found.getvalue()


def nested_pickle(levels: int, each: int) -> bytes:
    """Dictionaries that hold the next one `each` times: `each ** levels` entries in a few bytes."""
    content: Any = torch.zeros(1)
    for _ in range(levels):
        content = dict.fromkeys(map(str, range(each)), content)
    found = io.BytesIO()
    torch.save(content, found)
    return found.getvalue()


def cyclic_pickle() -> bytes:
    content: Json = {}
    content["state_dict"] = content
    found = io.BytesIO()
    torch.save(content, found)
    return found.getvalue()


def cifar_archive(levels: int) -> bytes:
    """CIFAR-10 whose batches are lists that hold the next one twice: 2 ** levels of them."""
    content: Any = []
    for _ in range(levels):
        content = [content, content]
    data = pickle.dumps({b"data": content, b"labels": content}, protocol=2)
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as tar:
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return found.getvalue()
