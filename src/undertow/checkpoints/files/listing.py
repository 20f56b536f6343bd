"""The files of a model that is read without its weights: a folder here, or a repository on the Hub, where only configs
and the first bytes of weights are fetched."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.gguf_header import read_gguf_header
from undertow.checkpoints.files.header import HeaderOnly, TensorInfo, read_header, require_known
from undertow.checkpoints.files.hub import cached_copy, client, hub_location, naming_the_hub
from undertow.checkpoints.files.place import is_hub_id, nothing_there, require_regular
from undertow.checkpoints.files.sniff import sniff
from undertow.errors import UnknownCheckpoint


@dataclass(frozen=True)
class Folder:
    """A folder on this machine. path: what messages call it."""

    path: Path

    @cached_property
    def names(self) -> Collection[str]:
        """Files, by their names inside it."""
        files = (*self.path.glob("*"), *self.path.glob("*/*"))
        return [file.relative_to(self.path).as_posix() for file in files if file.is_file()]

    def json(self, name: str) -> Mapping[str, Any]:
        """Errors: `CorruptFile`, `UnknownCheckpoint`."""
        return read_json(self.path / name)

    def header(self, name: str) -> HeaderOnly:
        """Of a safetensors or GGUF file. Errors: `UnknownCheckpoint`, `UnsafeFile`, `CorruptFile`."""
        path = self.path / name
        found = read_gguf_header(path) if sniff(path) == "gguf" else read_header(path)
        return HeaderOnly(path=path, tensors=found.tensors, metadata=found.metadata)


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, of which nothing but configs and headers is fetched.

    Errors: `UnknownCheckpoint` when the Hub does not answer or does not have it.
    """

    source: str
    """As it was typed: a Hub id."""

    @property
    def path(self) -> Path:
        return Path(self.source)

    @property
    def _location(self) -> dict[str, Any]:
        return hub_location(self.source)[0]

    @cached_property
    def names(self) -> Collection[str]:
        with naming_the_hub(self.source):
            return client().HfApi().list_repo_files(**self._location)

    def json(self, name: str) -> Mapping[str, Any]:
        with naming_the_hub(self.source):
            file = client().HfApi().hf_hub_download(**self._location, filename=name)
        return read_json(Path(file))

    def header(self, name: str) -> HeaderOnly:
        """By ranges of HTTP: a hundred kilobytes, as a rule, of a file of gigabytes. Errors: `UnknownCheckpoint` for a
        GGUF file, of which the Hub's client reads no header."""
        if name.endswith(".gguf"):
            raise UnknownCheckpoint(self.path / name, "a GGUF file that is not on this machine", "download it first")
        with naming_the_hub(self.source):
            found = client().HfApi().parse_safetensors_file_metadata(**self._location, filename=name)
        path = self.path / name
        tensors = {key: TensorInfo(info.dtype, tuple(info.shape)) for key, info in found.tensors.items()}
        require_known(path, tensors)
        return HeaderOnly(path=path, tensors=tensors, metadata=found.metadata)


Listing = Folder | Repository


def list_files(source: str) -> tuple[Listing, str | None]:
    """The files at a path or a Hub id, and which of them was named, if one was. A complete copy in the Hub client's
    cache is a folder. Errors: `UnknownCheckpoint` for a name that is neither."""
    require_regular(source)
    path = Path(source).expanduser()
    if path.exists():
        return (Folder(path), None) if path.is_dir() else (Folder(path.parent), path.name)
    if not is_hub_id(source) or source.startswith((".", "/", "~")):
        raise nothing_there(source)
    copy = cached_copy(source)
    if copy is not None:
        return (Folder(copy), None) if copy.is_dir() else (Folder(copy.parent), copy.name)
    return Repository(source), hub_location(source)[1]
