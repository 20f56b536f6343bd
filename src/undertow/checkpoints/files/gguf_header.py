"""The header of a GGUF file: names, types, shapes and places, read without the package `gguf` and without torch.

GGUF is the format of llama.cpp, stable-diffusion.cpp and ComfyUI-GGUF
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): counts, then metadata, then an entry for each tensor, then
the tensors, each at a multiple of the alignment. Sizes stand there from the fastest dimension on, the reverse of ours.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from undertow.checkpoints.files.header import Packed, TensorInfo
from undertow.checkpoints.files.header_json import corrupt
from undertow.errors import CorruptFile, UnknownCheckpoint, UnsupportedModel
from undertow.limits import HEADER_BYTES, NAME_LENGTH, TENSORS, Limit

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""ComfyUI-GGUF stores a convolution as rows of 256, and beside it, under this and its name, the shape that it has."""


class Encoding(NamedTuple):
    """How a type stores numbers: so many of them in a block of so many bytes. kind: what a safetensors file calls the
    type, for those that it has."""

    name: str
    numbers: int
    block_bytes: int
    kind: str | None = None


ENCODINGS: Mapping[int, Encoding] = {
    0: Encoding("F32", 1, 4, "F32"),
    1: Encoding("F16", 1, 2, "F16"),
    2: Encoding("Q4_0", 32, 18),
    3: Encoding("Q4_1", 32, 20),
    6: Encoding("Q5_0", 32, 22),
    7: Encoding("Q5_1", 32, 24),
    8: Encoding("Q8_0", 32, 34),
    10: Encoding("Q2_K", 256, 84),
    11: Encoding("Q3_K", 256, 110),
    12: Encoding("Q4_K", 256, 144),
    13: Encoding("Q5_K", 256, 176),
    14: Encoding("Q6_K", 256, 210),
    16: Encoding("IQ2_XXS", 256, 66),
    17: Encoding("IQ2_XS", 256, 74),
    18: Encoding("IQ3_XXS", 256, 98),
    19: Encoding("IQ1_S", 256, 50),
    20: Encoding("IQ4_NL", 32, 18),
    21: Encoding("IQ3_S", 256, 110),
    22: Encoding("IQ2_S", 256, 82),
    23: Encoding("IQ4_XS", 256, 136),
    24: Encoding("I8", 1, 1, "I8"),
    25: Encoding("I16", 1, 2, "I16"),
    26: Encoding("I32", 1, 4, "I32"),
    27: Encoding("I64", 1, 8, "I64"),
    28: Encoding("F64", 1, 8, "F64"),
    29: Encoding("IQ1_M", 256, 56),
    30: Encoding("BF16", 1, 2, "BF16"),
    34: Encoding("TQ1_0", 256, 54),
    35: Encoding("TQ2_0", 256, 66),
}
"""The types that are read, by ggml's number."""

_NUMBERS: Mapping[int, str] = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
"""Types of values in metadata, as `struct` calls them."""
_STRING, _ARRAY = 8, 9


class Place(NamedTuple):
    """Where a tensor lies, in bytes from the start of the file, and how it is stored."""

    begin: int
    size_bytes: int
    encoding: Encoding


@dataclass(frozen=True)
class GgufHeader:
    """metadata: untrusted text; of arrays the number of values."""

    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place]
    metadata: Mapping[str, str]


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) // self.encoding.numbers * self.encoding.block_bytes


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads names, types, shapes and places. Errors: `UnknownCheckpoint`, `CorruptFile`; `UnsupportedModel` for a
    language model."""
    with path.open("rb") as file:
        cursor = _Cursor(path, file)
        version = cursor.begin()
        if version not in VERSIONS:
            known = f"undertow reads {' and '.join(map(str, VERSIONS))}: convert it anew"
            raise UnknownCheckpoint(path, f"a GGUF file of version {version}", known)
        tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
        cursor.require(TENSORS, tensor_count, f"{tensor_count:,} tensors")
        cursor.require(TENSORS, value_count, f"{value_count:,} entries of metadata")
        metadata, shapes = _metadata(cursor, value_count)
        entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get(ALIGNMENT, "32")
    if not (alignment.isdecimal() and 0 < int(alignment) <= 2**20):
        raise corrupt(path, f"an alignment of {alignment[:20]!r} bytes in its GGUF header")
    start = -(-cursor.position // int(alignment)) * int(alignment)
    _require_whole(path, entries, path.stat().st_size - start)
    tensors = {entry.name: _info(path, entry, shapes.get(entry.name, entry.shape)) for entry in entries}
    if len(tensors) != len(entries):
        raise corrupt(path, "a tensor's name occurs twice in its GGUF header")
    places = {entry.name: Place(start + entry.offset, entry.size_bytes, entry.encoding) for entry in entries}
    return GgufHeader(tensors=tensors, places=places, metadata=metadata)


def _metadata(cursor: "_Cursor", count: int) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata as text, and the shapes that stand there, by the name of the tensor."""
    found: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        key = cursor.text(NAME_LENGTH, "a key")
        if key.startswith("tokenizer."):  # a vocabulary can be longer than the header of a model of pictures may be
            raise language_model(cursor.path, found.get(ARCHITECTURE))
        kind = cursor.number("I")
        if kind == _ARRAY:
            of, length = cursor.number("I"), cursor.number("Q")
            if key.startswith(ORIGINAL_SHAPE) and of in _NUMBERS and length <= MOST_DIMENSIONS:
                sizes = [int(cursor.number(_NUMBERS[of])) for _ in range(length)]
                shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(sizes)
            else:
                cursor.skip_array(of, length)
                found[key] = f"{length:,} values"
        elif kind == _STRING:
            found[key] = cursor.text(HEADER_BYTES, "a text")
        elif kind in _NUMBERS:
            found[key] = str(cursor.number(_NUMBERS[kind]))
        else:
            raise corrupt(cursor.path, f"a value of the unknown type {kind} in its GGUF header")
    return found, shapes


def language_model(path: Path, architecture: str | None) -> UnsupportedModel:
    """The refusal of a GGUF file of a language model."""
    named = f" ({architecture[:40]})" if architecture else ""
    remedy = "give a GGUF file of a Stable Diffusion 1, 2 or XL model"
    return UnsupportedModel(path, f"a language model{named} in a GGUF file", remedy)


def _entry(cursor: "_Cursor") -> _Entry:
    name = cursor.text(NAME_LENGTH, "a tensor's name")
    dimensions = cursor.number("I")
    if dimensions > MOST_DIMENSIONS:
        raise corrupt(cursor.path, f"the tensor {name!r} with {dimensions:,} dimensions in its GGUF header")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    encoding = ENCODINGS.get(kind)
    if encoding is None:
        known = ", ".join(known.name for known in ENCODINGS.values())
        problem = f"the tensor {name!r} has the quantization type {kind}"
        raise UnknownCheckpoint(cursor.path, problem, f"undertow reads {known}")
    if prod(shape) == 0 or prod(shape[-1:]) % encoding.numbers:
        problem = f"the tensor {name!r} of {'x'.join(map(str, shape))} numbers, which are no blocks of {encoding.name}"
        raise corrupt(cursor.path, f"an impossible GGUF header: {problem}")
    return _Entry(name, shape, encoding, offset)


def _info(path: Path, entry: _Entry, shape: tuple[int, ...]) -> TensorInfo:
    if prod(shape) != prod(entry.shape) or min(shape, default=1) < 1:
        said = f"{'x'.join(map(str, shape))}, and it has {prod(entry.shape):,} numbers"
        raise corrupt(path, f"the shape of the tensor {entry.name!r} is said to be {said}")
    stored = entry.encoding
    if stored.kind is not None:
        return TensorInfo(stored.kind, shape)
    # What its scales are, and what most files of these weights were made from.
    return TensorInfo("F16", shape, Packed(stored.name, 8 * stored.block_bytes / stored.numbers))


def _require_whole(path: Path, entries: list[_Entry], data_bytes: int) -> None:
    """Every tensor within the file, and none over another: the padding between them is of any length."""
    position = 0
    for entry in sorted(entries, key=lambda one: one.offset):
        if entry.offset < position:
            raise corrupt(path, f"not a whole GGUF file: the tensor {entry.name!r} begins inside the one before it")
        position = entry.offset + entry.size_bytes
    if position > max(data_bytes, 0):
        said = f"its tensors need {position:,} bytes, and {max(data_bytes, 0):,} are there"
        raise corrupt(path, f"not a whole GGUF file: {said}")


class _Cursor:
    """Reads a header from its beginning, never more of it than a header may have."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.position = path, 0
        self._file = file

    def begin(self) -> int:
        """The version. Errors: `UnknownCheckpoint` for a file of a processor with the other order of bytes."""
        if self._bytes(len(MAGIC)) != MAGIC:
            raise corrupt(self.path, "this does not begin like a GGUF file")
        version = self.number("I")
        if version and not version & 0xFFFF:
            remedy = "convert it anew on a little-endian machine"
            raise UnknownCheckpoint(self.path, "a GGUF file of big-endian numbers", remedy)
        return version

    def number(self, form: str) -> int:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]

    def text(self, limit: Limit, what: str) -> str:
        length = self.number("Q")
        self.require(limit, length, f"{what} of {length:,} bytes")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError as err:
            raise corrupt(self.path, f"{what} in its GGUF header is not UTF-8") from err

    def skip_array(self, of: int, length: int) -> None:
        if of in _NUMBERS:
            self._bytes(length * struct.calcsize(f"<{_NUMBERS[of]}"))
        elif of == _STRING:
            for _ in range(length):
                self._bytes(self.number("Q"))
        else:
            raise corrupt(self.path, f"an array of the unknown type {of} in its GGUF header")

    def require(self, limit: Limit, count: int, what: str) -> None:
        if count > limit.most:
            raise CorruptFile(self.path, f"a GGUF header with {what}; {limit.most:,} are allowed", limit.remedy)

    def _bytes(self, count: int) -> bytes:
        self.position += count
        self.require(HEADER_BYTES, self.position, f"{self.position:,} bytes or more")
        data = self._file.read(count)
        return data if len(data) == count else self._cut_off()

    def _cut_off(self) -> NoReturn:
        raise corrupt(self.path, f"cut off in its GGUF header: {self.path.stat().st_size:,} bytes are there")
