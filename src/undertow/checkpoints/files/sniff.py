"""Detects a file's format from its first bytes, because file names can be wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from undertow.errors import CorruptFile, UnknownCheckpoint, UnsafeFile

Container = Literal["safetensors", "pickle", "gguf", "html", "lfs", "other"]
"""File formats. pickle: any of torch's formats (.ckpt, .pt, .bin), zipped or not."""

HEAD_BYTES = 512
LENGTH_BYTES = 8

_MAGIC: dict[bytes, Container] = {
    b"PK\x03\x04": "pickle",
    b"PK\x05\x06": "pickle",
    **{b"\x80" + bytes([protocol]): "pickle" for protocol in range(2, 6)},
    b"version https://git-lfs": "lfs",
}

PICKLE_REMEDY = (
    "make a safe file of it (`undertow convert FILE NEW.safetensors --allow-pickle`), or load it with "
    "`allow_pickle=True` (generate --allow-pickle): its tensors are read in a process of its own that may create "
    "nothing but tensors"
)
FOLDER_REMEDY = (
    "save it again with diffusers' `save_pretrained(..., safe_serialization=True)`, on a machine where you trust it"
)

_OTHERS: Mapping[bytes, str] = {
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture, or a sound",
    b"\0\0\1\0": "an icon",
    b"%PDF": "a PDF",
    b"\x08": "perhaps an ONNX model",
}

ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""Of files that are meant to be weights."""


def sniff(path: Path) -> Container:
    """The format of a file. Errors: `UnknownCheckpoint` when it does not exist, `CorruptFile` when it is empty."""
    head, size = _head(path)
    if head.startswith(b"GGUF"):
        return "gguf"  # as a length, these bytes are far more than the header of a safetensors file may have
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    opens = head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    if opens and length <= size - LENGTH_BYTES:
        return "safetensors"  # before pickles: a header of 0x0480 bytes begins as a pickle of protocol 4 does
    for magic, container in _MAGIC.items():
        if head.startswith(magic):
            return container
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    # An impossible header length is reported by the header reader, unless these eight bytes are text.
    return "safetensors" if opens and (length <= size or not _is_text(head[:LENGTH_BYTES])) else "other"


def require_safetensors(path: Path) -> None:
    """Accepts a safetensors file, and says what any other file is.

    Errors: `UnsafeFile` for pickles, `UnknownCheckpoint` for formats that undertow does not read, `CorruptFile` for
    files that are not models.
    """
    match sniff(path):
        case "safetensors":
            return
        case "pickle":
            raise UnsafeFile(path, "this is a pickle, which can run code when it is read", PICKLE_REMEDY)
        case "gguf":
            problem = "this is a GGUF file, which undertow reads as a model and not here"
            raise UnknownCheckpoint(path, problem, "use its safetensors")
        case "html":
            raise CorruptFile(path, "this is a web page, not a model", "download it again, signed in if need be")
        case "lfs":
            raise CorruptFile(path, "this is a git-lfs pointer, not the model itself", "run `git lfs pull` beside it")
        case "other":
            raise _other(path)


def _other(path: Path) -> CorruptFile | UnknownCheckpoint:
    head, _ = _head(path)
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return UnknownCheckpoint(path, f"this is {name}, not a safetensors file", "give a .safetensors file")
    if _is_text(head) and path.suffix.lower() in ENDINGS:  # what a server said in place of the model
        start = head[:60].decode("utf-8", "replace").strip()
        return CorruptFile(path, f"this is text, not a model: {start!r}", "download it again")
    if _is_text(head):
        return CorruptFile(path, "this is text, not a model", "give a .safetensors file")
    return CorruptFile(path, "this does not begin like a safetensors file", "copy or download it again")


def _head(path: Path) -> tuple[bytes, int]:
    if path.exists() and not path.is_file():
        raise UnknownCheckpoint(path, "a folder, a pipe or a device, not a file", "give a .safetensors file")
    if not path.is_file():
        raise UnknownCheckpoint(path, "no such file", "give a .safetensors file, a diffusers folder or a Hub id")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise CorruptFile(path, "the file is empty", "copy or download it again")
    return head, path.stat().st_size


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
