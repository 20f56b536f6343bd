"""An adapter's files opened, whatever they hold: tensors by name, and diffusers' config beside them."""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.locate import locate
from undertow.checkpoints.files.model_folder import CONFIG, STEMS, folder_weights, variant_order
from undertow.checkpoints.files.pickled import as_safetensors, is_pickle
from undertow.checkpoints.files.weights import WeightFile, Weights, open_weights
from undertow.checkpoints.keymap.contents import WRAPPERS
from undertow.errors import UnknownCheckpoint
from undertow.limits import FOLDER_FILES

SUBFOLDERS = ("controlnet", "adapter", "t2iadapter")
"""Where a pipeline's folder keeps its ControlNet or T2I-Adapter."""

LORA_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder of theirs."""

LORA_PICKLES = ("adapter_model.bin", "pytorch_lora_weights.bin")


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedAdapter:
    """An adapter's files while they are open. place: where `open_adapter` finds the same again. path: as messages name
    it. folder: whether `source` was a folder. files:
    every file that is read. config: diffusers' config.json, empty if there is none. pickled: whether the tensors come
    from a pickle."""

    place: Path
    path: Path
    folder: bool
    weights: Weights
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    pickled: bool = False

    @property
    def names(self) -> dict[str, str]:
        """The file's tensor names, keyed by the same names without wrapper prefixes such as "state_dict." and
        "module."."""
        return {WRAPPERS.sub("", name, count=1) if WRAPPERS.match(name) else name: name for name in self.tensors}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.weights.tensors

    def content_hash(self, *more: Path) -> str:
        """SHA-256 of all files that are read. more: further files that a kind of adapter reads."""
        digest = hashlib.sha256()
        for path in (*self.files, *more):
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def open_adapter(source: str | Path) -> Generator[OpenedAdapter]:
    """Opens the adapter at `source` for the length of the block: a safetensors file; a pickle (.bin, .pth), whose
    tensors are read in a separate process that can create nothing else; a diffusers model folder; or any of these on
    the Hub.

    Errors: `UnknownCheckpoint`, `UnsafeFile` for a pickle with more than tensors, `CorruptFile`.
    """
    place = locate(source)
    path = _file_in(_model_folder(place)) if place.is_dir() else place
    described = path.is_dir() or place.is_dir() or path.name.startswith(STEMS[0])
    config = (path if path.is_dir() else path.parent) / CONFIG
    own = (config,) if described and config.is_file() else ()
    json = read_json(config) if own else {}
    given = {"place": place, "path": path, "folder": place.is_dir(), "config": json}
    if path.is_dir():
        weights = folder_weights(path, variant_order(None))
        yield OpenedAdapter(weights=weights, files=(*(file.path for file in weights.files), *own), **given)
    elif is_pickle(path):
        with as_safetensors(path) as converted:
            weights = Weights(path, [WeightFile(converted)])
            yield OpenedAdapter(weights=weights, files=(path, *own), pickled=True, **given)
    else:
        yield OpenedAdapter(weights=open_weights(path), files=(path, *own), **given)


def files_to_read(folder: Path) -> list[Path]:
    """The files of an adapter's folder: its own and those of `SUBFOLDERS`, whatever else lies below. Errors:
    `UnknownCheckpoint` for a folder of more files than `limits.FOLDER_FILES`."""
    return sorted(file for place in (folder, *(folder / name for name in SUBFOLDERS)) for file in _files_in(place))


def _files_in(folder: Path) -> list[Path]:
    """The regular files of a folder; none of what is no folder."""
    if not folder.is_dir():
        return []
    entries = list(islice(folder.iterdir(), FOLDER_FILES.most + 1))
    if len(entries) > FOLDER_FILES.most:
        remedy = f"give the file itself, or {FOLDER_FILES.remedy}"
        raise UnknownCheckpoint(folder, f"a folder of more than {FOLDER_FILES.most:,} files", remedy)
    return [path for path in entries if path.is_file()]


def _model_folder(folder: Path) -> Path:
    if (folder / CONFIG).is_file():
        return folder
    inner = [folder / name for name in SUBFOLDERS if (folder / name / CONFIG).is_file()]
    return inner[0] if inner else folder


def _file_in(folder: Path) -> Path:
    """The folder itself if it has a weight file under diffusers' names of networks; else the file with a LoRA's usual
    name; else its only weight file."""
    inside = _files_in(folder)
    if any(path.name.startswith(STEMS) and ".safetensors" in path.name for path in inside):
        return folder
    called = next((folder / name for name in (*LORA_FILES, *LORA_PICKLES) if (folder / name).is_file()), None)
    if called is not None:
        return called
    for endings in ((".safetensors",), (".bin", ".pth", ".pt", ".ckpt")):
        files = sorted(path for path in inside if path.name.endswith(endings))
        if len(files) > 1:
            names = ", ".join(path.name for path in files[:3])
            problem = f"a folder with {len(files)} files of weights ({names})"
            raise UnknownCheckpoint(folder, problem, "give one of them")
        if files:
            return files[0]
    raise UnknownCheckpoint(folder, "a folder without weights", "give the file itself, or a model folder of diffusers'")
