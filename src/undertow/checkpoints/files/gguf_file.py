"""GGUF files on disk, read one tensor at a time; quantized ones become the float32 numbers that they stand for."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.checkpoints.files.gguf_header import GgufHeader, Place, read_gguf_header
from undertow.checkpoints.files.weights import file_stamp
from undertow.errors import CorruptFile
from undertow.extras import optional_package

if TYPE_CHECKING:
    from undertow.shapes import AnyTensor

BLOCKS = 2**13
"""Dequantized at a time, which keeps the steps in between small."""


class GgufFile:
    """One GGUF file: its validated header, and a reader. Errors as in `read_gguf_header`."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp = file_stamp(path)
        self._header = header = read_gguf_header(path)
        self.tensors = header.tensors
        self.metadata = header.metadata

    @contextmanager
    def reader(self) -> "Generator[GgufReader]":
        """Reads tensors until the block ends. Errors: `CorruptFile` when the file changes meanwhile."""
        yield GgufReader(self.path, self._header)
        if file_stamp(self.path) != self._stamp:
            raise CorruptFile(self.path, "the file changed while it was read", "load it again when it is complete")


class GgufReader:
    """Reads tensors of a GGUF file, each into memory of its own."""

    def __init__(self, path: Path, header: GgufHeader):
        self._path, self._header = path, header

    def read(self, name: str) -> "AnyTensor":
        """One tensor: in the file's type, or in float32 where it is quantized. Errors: `MissingDependency` for one that
        is quantized, without the package that knows how; `CorruptFile`."""
        import torch  # noqa: PLC0415  slow to import

        place, info = self._header.places[name], self._header.tensors[name]
        data = self._bytes(place)
        if info.packed is None:
            return torch.frombuffer(data, dtype=info.dtype).reshape(info.shape)
        return _dequantized(data, place).reshape(info.shape)

    def _bytes(self, place: Place) -> bytearray:
        with self._path.open("rb") as file:
            file.seek(place.begin)
            data = bytearray(file.read(place.size_bytes))
        if len(data) != place.size_bytes:
            raise CorruptFile(self._path, "the file became shorter while it was read", "load it again")
        return data


def _dequantized(data: bytearray, place: Place) -> "AnyTensor":
    import numpy as np  # noqa: PLC0415  slow to import
    import torch  # noqa: PLC0415  slow to import

    with optional_package("gguf", "gguf"):
        from gguf import GGMLQuantizationType  # noqa: PLC0415  an extra
        from gguf.quants import dequantize  # noqa: PLC0415  an extra

    kind, stored = GGMLQuantizationType[place.encoding.name], np.frombuffer(data, dtype=np.uint8)
    numbers, block_bytes = place.encoding.numbers, place.encoding.block_bytes
    values = np.empty(stored.size // block_bytes * numbers, dtype=np.float32)
    # A scale that is no number is found by the check of health, which names the tensor.
    with np.errstate(invalid="ignore", over="ignore"):
        for begin in range(0, values.size, BLOCKS * numbers):
            first = begin // numbers * block_bytes
            part = stored[first : first + BLOCKS * block_bytes].reshape(1, -1)
            values[begin : begin + BLOCKS * numbers] = dequantize(part, kind)[0]
    return torch.from_numpy(values)
