"""Textual inversions inside pictures, as A1111 writes them: in a text of the PNG, and in the pixels themselves.

The text "sd-ti-embedding" is base64 of JSON, with {"TORCHTENSOR": [[...]]} for a tensor. The pixels hold the same JSON,
compressed: black columns part the shown picture from a block at its left with the low four bits of each byte and one at
its right with the high four, in the low bits of its channels, over a fixed sequence of numbers. Source:
modules/textual_inversion/image_embedding.py of A1111's web UI.
"""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from undertow.errors import CorruptFile, UnknownCheckpoint, in_plain_words
from undertow.limits import EMBEDDING_BYTES
from undertow.pictures.files import header_of, open_picture

TEXT = "sd-ti-embedding"
TENSOR = "TORCHTENSOR"

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"RIFF")
_MULTIPLIER, _INCREMENT = 1664525, 1013904223

Pixels = UInt8[np.ndarray, "height width 3"]


def is_picture(path: Path) -> bool:
    """Whether a file is one of those that can hold an inversion: PNG or WebP, by its first bytes."""
    with path.open("rb") as file:
        return file.read(8).startswith(_SIGNATURES)


def read_inversion_picture(path: Path) -> tuple[str, dict[str, Float32[np.ndarray, "vectors dim"]]]:
    """The name that the picture gives it, perhaps none, and its vectors, for an encoder that it does not name.

    Errors: `UnknownCheckpoint` for a picture without one, `CorruptFile`, `InvalidInput`.
    """
    with header_of("embedding", path) as image:
        text = image.info.get(TEXT)
    hidden = b"" if isinstance(text, str) else _hidden(path)
    try:
        content = json.loads(base64.b64decode(text) if isinstance(text, str) else _inflated(hidden))
        (vectors,) = content["string_to_param"].values()
        numbers = np.array(vectors[TENSOR], dtype=np.float32)
        name = content.get("name", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as err:
        raise CorruptFile(
            path, f"the textual inversion in it cannot be read ({in_plain_words(err)})", "download it again"
        ) from err
    if numbers.ndim not in (1, 2):
        raise CorruptFile(path, f"a textual inversion of shape {list(numbers.shape)}", "download it again")
    return name if isinstance(name, str) else "", {"": numbers}


def _hidden(path: Path) -> bytes:
    """The compressed JSON in the pixels. Errors: `UnknownCheckpoint` where there is none."""
    low_bits = _without_border(np.asarray(open_picture("embedding", path).convert("RGB"))) & 0x0F
    black = np.flatnonzero(low_bits.sum(axis=(0, 2)) == 0)
    if black.size < 2 or black[0] == 0 or black[-1] == low_bits.shape[1] - 1:
        raise UnknownCheckpoint(path, "a picture without a textual inversion", "give one that A1111 wrote into it")
    low, high = (_plain(block) for block in (low_bits[:, : black[0]], low_bits[:, black[-1] + 1 :]))
    if low.shape != high.shape:
        raise UnknownCheckpoint(path, "a picture without a textual inversion", "it was cut or scaled")
    return (high << 4 | low).tobytes()


def _inflated(compressed: bytes) -> bytes:
    """Errors: `zlib.error`, `ValueError` for more than such a file can hold."""
    content = zlib.decompressobj()
    found = content.decompress(compressed, EMBEDDING_BYTES.most)
    if content.unconsumed_tail:
        raise ValueError(f"more than {EMBEDDING_BYTES.most:,} bytes; {EMBEDDING_BYTES.remedy}")
    return found


def _without_border(pixels: Pixels) -> UInt8[np.ndarray, "inner_height inner_width 3"]:
    shown = (pixels > 0).all(axis=2)
    rows, columns = np.flatnonzero(np.any(shown, axis=1)), np.flatnonzero(np.any(shown, axis=0))
    if rows.size == 0:
        return pixels[:0]
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _plain(block: Pixels) -> UInt8[np.ndarray, "bytes"]:
    """A block without the sequence it was written over."""
    EMBEDDING_BYTES.require("embedding", block.size, f"a block of {block.size:,} bytes")
    return block.reshape(-1) ^ (mask_numbers(block.size) & 0x0F)


def mask_numbers(count: int) -> UInt8[np.ndarray, "count"]:
    """x ← (1664525 x + 1013904223) mod 2^32 from 0, each modulo 255."""
    found = np.empty(count, dtype=np.uint8)
    state = 0
    for index in range(count):
        state = (_MULTIPLIER * state + _INCREMENT) % 2**32
        found[index] = state % 255
    return found
