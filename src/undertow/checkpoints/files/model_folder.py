"""A model folder of diffusers or transformers: config.json, and weights in one file or in shards."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.scaled import plain_file
from undertow.checkpoints.files.sniff import FOLDER_REMEDY
from undertow.checkpoints.files.weights import WeightFile, Weights
from undertow.errors import CorruptFile, UnknownCheckpoint, UnsafeFile

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""The names that diffusers and transformers give weights files, without their endings."""

PLAIN = ""


def variant_order(preferred: str | None, *, prefer_plain: bool = False) -> tuple[str, ...]:
    """The variants of a weights file to look for, in order: the preferred one, float16, plain.

    "non_ema" comes last: these weights are for further training, not for inference.
    """
    usual = (PLAIN, "fp16", "non_ema") if prefer_plain else ("fp16", PLAIN, "non_ema")
    return usual if preferred is None else (preferred, *(variant for variant in usual if variant != preferred))


def folder_weights(folder: Path, variants: Sequence[str]) -> Weights:
    """The folder's weights, in the first of `variants` that exists.

    Errors: `UnknownCheckpoint` when it has none, `UnsafeFile` when it has only pickles, `CorruptFile`.
    """
    found = _found(folder, variants)
    if found.suffix == ".json":
        return _sharded(found)
    return Weights(found, [plain_file(WeightFile(path_inside(folder, found.name)))])


def folder_files(folder: Path, variants: Sequence[str]) -> list[Path]:
    """The files that `folder_weights` reads, without a look inside. Errors: as there."""
    found = _found(folder, variants)
    if found.suffix == ".json":
        return [path_inside(folder, name) for name in sorted(set(_shards(found).values()))]
    return [path_inside(folder, found.name)]


def _found(folder: Path, variants: Sequence[str]) -> Path:
    """The file of weights, or the index of shards."""
    for variant in variants:
        dotted = f".{variant}" if variant else ""
        for stem in STEMS:
            for name in (
                f"{stem}{dotted}.safetensors",
                f"{stem}{dotted}.safetensors.index.json",
                f"{stem}.safetensors.index{dotted}.json",
            ):
                if (folder / name).is_file():
                    return folder / name
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise UnsafeFile(folder, f"its weights are pickles ({pickles[0]}), which can run code when read", FOLDER_REMEDY)
    tried = ", ".join(variant or "plain" for variant in variants)
    raise UnknownCheckpoint(folder, f"no weights (looked for: {tried})", "a model folder holds a .safetensors file")


def path_inside(folder: Path, name: str) -> Path:
    """The path of a file that an index names, which must lie in this folder, also after symbolic links are resolved.

    A snapshot of the Hub's cache consists of links into the cache's `blobs`, which are allowed.
    Errors: `CorruptFile`.
    """
    pure = PurePosixPath(name)
    special = any(mark in name for mark in ("\\", ":", "\0"))
    if special or pure.is_absolute() or ".." in pure.parts or len(pure.parts) != 1:
        raise CorruptFile(folder, f"its index names {name!r}, a file outside the folder", "download it again")
    path = folder / name
    resolved = path.resolve()
    if not any(resolved.is_relative_to(root) for root in _roots(folder)):
        raise CorruptFile(folder, f"{name!r} is a link to a place outside the folder", "copy the file itself")
    return path


def _shards(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CorruptFile(index, "no weight_map from tensors to files", "download it again")
    return weight_map


def _sharded(index: Path) -> Weights:
    folder, weight_map = index.parent, _shards(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not path_inside(folder, name).is_file()]
    if missing:
        raise CorruptFile(index, f"{len(missing)} of {len(names)} shards are missing ({missing[0]})", "download them")
    files = [WeightFile(path_inside(folder, name)) for name in names]
    absent = sorted(weight_map.keys() - {name for file in files for name in file.tensors})
    if absent:
        raise CorruptFile(index, f"{len(absent)} tensors are in no shard ({absent[0]})", "download it again")
    return Weights(index, [plain_file(file) for file in files])


def _roots(folder: Path) -> list[Path]:
    """The directories in which the files of a folder may lie after links are resolved."""
    roots = [folder.resolve()]
    for parent in folder.absolute().parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            roots.append((parent.parent / "blobs").resolve())
    return roots


def find_unet_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UnknownCheckpoint(folder, "no such folder", "give a diffusers model or pipeline folder")
    if not (folder / CONFIG).is_file() and (folder / "unet" / CONFIG).is_file():
        return folder / "unet"
    return folder
