"""Tensors on disk: one safetensors file, or the shards of one, read one tensor at a time; and written at once."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open

from undertow.checkpoints.files.atomic import atomic_write
from undertow.checkpoints.files.header import Header, HeaderOnly, TensorInfo, read_header
from undertow.errors import CheckpointError, CorruptFile

if TYPE_CHECKING:
    from torch import Tensor

    from undertow.shapes import AnyTensor

SMALL_BYTES = 2**20
"""Smaller tensors are read without mapping the file, for which a system may have too little memory."""

REMAP_BYTES = 64 * 2**20
"""Mapped pages count as memory of the process until they are unmapped, so the file is mapped anew after each 64 MiB."""


class TensorReader(Protocol):
    """Reads tensors of an open file by name."""

    def read(self, name: str) -> "AnyTensor": ...


@runtime_checkable
class TensorFile(Protocol):
    """One file of tensors in any format: its validated header, and a reader."""

    @property
    def path(self) -> Path: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    def reader(self) -> AbstractContextManager[TensorReader]: ...


class WeightFile:
    """One safetensors file: its validated header, and a reader. Errors as in `read_header`."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp = file_stamp(path)
        self._header = header = read_header(path)
        self.tensors = header.tensors
        self.metadata = header.metadata

    @contextmanager
    def reader(self) -> Generator["Reader"]:
        """Reads tensors until the block ends. Errors: `CorruptFile` when the file changes meanwhile."""
        with self._translated():
            yield Reader(self.path, self._header)
        if file_stamp(self.path) != self._stamp:
            raise CorruptFile(self.path, "the file changed while it was read", "load it again when it is complete")

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except SafetensorError as err:
            raise CorruptFile(self.path, f"not a whole safetensors file ({err})", "copy or download it again") from err
        except RuntimeError as err:
            if "mmap" not in str(err):
                raise
            problem = f"{self.path.stat().st_size / 2**30:.1f} GiB, which cannot be mapped into this machine's memory"
            raise CheckpointError(self.path, problem, "close other programs, or use a machine with more") from err


class Reader:
    """Reads tensors of an open file, large ones as views of its read-only mapping: copy what is needed after the
    block."""

    def __init__(self, path: Path, header: Header):
        self._path, self._header = path, header
        self._file: safe_open | None = None
        self._mapped = 0

    def read(self, name: str) -> "AnyTensor":
        """One tensor, in the file's type."""
        info = self._header.tensors[name]
        if info.size_bytes < SMALL_BYTES and self._file is None:
            return self._read_small(name, info)
        if self._file is None or self._mapped >= REMAP_BYTES:
            self._file, self._mapped = _open(self._path), 0
        tensor = self._file.get_tensor(name)
        self._mapped += tensor.nbytes
        return tensor

    def _read_small(self, name: str, info: TensorInfo) -> "AnyTensor":
        import torch  # noqa: PLC0415  slow to import

        if not info.count:
            return torch.zeros(info.shape, dtype=info.dtype)
        with self._path.open("rb") as file:
            file.seek(self._header.places[name])
            data = file.read(info.size_bytes)
        if len(data) != info.size_bytes:
            raise CorruptFile(self._path, "the file became shorter while it was read", "load it again")
        return torch.frombuffer(bytearray(data), dtype=info.dtype).reshape(info.shape)


class Weights:
    """The tensors of one checkpoint, in one file or in shards. `path` is the one that messages name.

    Errors: `CorruptFile` for a tensor that is in two shards.
    """

    def __init__(self, path: Path, files: Sequence[TensorFile]):
        self.path = path
        self.files = tuple(files)
        self._home: dict[str, int] = {}
        for index, file in enumerate(self.files):
            for name in file.tensors:
                if name in self._home:
                    raise CorruptFile(path, f"the tensor {name!r} is in two shards", "copy or download it again")
                self._home[name] = index

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: self.files[index].tensors[name] for name, index in self._home.items()}

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of all files; where they disagree, the first file counts."""
        return {key: value for file in reversed(self.files) for key, value in file.metadata.items()}

    @contextmanager
    def reader(self) -> "Generator[Callable[[str], AnyTensor]]":
        """A function that reads a tensor by name, until the block ends; each result is a view of a mapped file."""
        with ExitStack() as stack:
            readers: dict[int, TensorReader] = {}

            def read(name: str) -> "AnyTensor":
                index = self._home[name]
                if index not in readers:
                    readers[index] = stack.enter_context(self.files[index].reader())
                return readers[index].read(name)

            yield read

    def each(self, names: Sequence[str]) -> "Iterator[tuple[str, AnyTensor]]":
        """(name, tensor) of every name, file by file; a tensor is a view that is valid until the next one."""
        with self.reader() as read:
            for name in sorted(names, key=self._home.__getitem__):
                yield name, read(name)

    def read(self, name: str) -> "AnyTensor":
        """One tensor, copied."""
        with self.reader() as read:
            return read(name).clone()


Described = Weights | HeaderOnly
"""A file of which the header is known, with or without its weights."""


def open_weights(path: str | Path) -> Weights:
    """Opens a single safetensors file. Errors as in `read_header`."""
    path = Path(path)
    return Weights(path, [WeightFile(path)])


def write_tensors(tensors: "Mapping[str, Tensor]", path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically."""
    from safetensors.torch import save_file  # noqa: PLC0415  imports torch

    with atomic_write(path) as draft:
        save_file(dict(tensors), draft, metadata=dict(metadata))


def _open(path: Path) -> safe_open:
    return safe_open(path, framework="pt")


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which a change of it is seen; zeros where it is not there."""
    if not path.is_file():
        return (0, 0)
    status = path.stat()
    return status.st_size, status.st_mtime_ns
