"""Embedded models that share another one's weights: in the package they are a LoRA and a scheduler, and on this machine
a whole folder, put together the first time that one is needed. Imports nothing that is slow until then.

models/NAME/assembled.json      {"base": "emoji", "lora": "adapters/turbo.safetensors"}, a file of the base's folder
models/NAME/...                 all other files that differ from the base's, whose other adapters it has too
CACHE/models/KEY/NAME/          what undertow and diffusers read
"""

import atexit
import json
import logging
import shutil
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from undertow.cache_folder import cache_folder, read_cached, write_cached
from undertow.errors import UnknownCheckpoint

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

DESCRIPTION = "assembled.json"
UNET = Path("unet/diffusion_pytorch_model.safetensors")
CARD = "README.md"
NOT_COPIED = (DESCRIPTION, CARD)
"""Of the base and of the description."""

WHOLE = ".files.json"
"""Written last: what files there are, and how large."""


def is_described(folder: Path) -> bool:
    """Whether a folder of the package is a description of a model, and no model."""
    return (folder / DESCRIPTION).is_file()


def assembled(folder: Path) -> Path:
    """The whole model that `folder` describes, written into the cache if it is not there yet; where nothing can be
    written, which is logged, into a temporary folder of this process.

    Errors: `UnknownCheckpoint` where that cannot be written either.
    """
    said = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    base = folder.parent / said["base"]
    lora = base / said["lora"]
    key = _key(base, lora, folder)
    place = cache_folder() / "models" / key / folder.name
    try:
        return place if _is_whole(place) else _written(place, base, lora, folder)
    except OSError as error:
        problem = error.strerror or "it cannot be written"
    return _of_this_process(key, base, lora, folder, f"{cache_folder()}: {problem}")


@cache
def _of_this_process(key: str, base: Path, lora: Path, folder: Path, problem: str) -> Path:
    """A copy that is removed when the process ends. problem: why the cache does not have it."""
    logger.warning(
        "each process puts %s together anew, since the cache cannot be written (%s); UNDERTOW_CACHE names another",
        folder.name,
        problem,
    )
    try:
        root = Path(mkdtemp(prefix="undertow-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        return _written(root / key / folder.name, base, lora, folder)
    except OSError as error:
        raise UnknownCheckpoint(
            folder.name,
            f"it is put together on this machine, which has no place for it ({problem})",
            "have the environment variable UNDERTOW_CACHE name a folder that can be written, with 100 MB of space",
        ) from error


def _written(place: Path, base: Path, lora: Path, folder: Path) -> Path:
    """Puts the model together beside its place, and moves it there whole. Errors: `OSError`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(dir=place.parent, prefix=f"{place.name}."))
    try:
        for source in (base, folder):
            _copy(source, draft, left=(*NOT_COPIED, lora.name, f"{lora.stem}.md"))
        _copy_file(folder / CARD, draft / CARD)
        _merge(draft / UNET, lora)
        write_cached(_sizes(draft), draft / WHOLE)
        draft.chmod(0o755)
        if not _is_whole(place):  # else another process was first
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
    except OSError:
        if not _is_whole(place):
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _is_whole(place: Path) -> bool:
    """Whether all was written, and nothing of it was removed since or cut short."""
    sizes = read_cached(place / WHOLE)
    present = ((place / name).is_file() and (place / name).stat().st_size == size for name, size in sizes.items())
    return bool(sizes) and all(present)


def _sizes(folder: Path) -> dict[str, int]:
    """Of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _copy(source: Path, target: Path, left: tuple[str, ...]) -> None:
    """What a folder holds, but for what is left, as new files: those of the package may be for reading only."""
    for path in source.iterdir():
        if path.name in left:
            continue
        if path.is_dir():
            (target / path.name).mkdir(exist_ok=True)
            _copy(path, target / path.name, left)
        else:
            _copy_file(path, target / path.name)


def _copy_file(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def _merge(unet: Path, lora: Path) -> None:
    """Adds the LoRA (sd-scripts' names) to a U-Net's file, in float32; the file keeps its type."""
    from safetensors.numpy import load_file, save  # noqa: PLC0415  # with numpy, which names alone need not wait for

    weights, updates = load_file(unet), load_file(lora)
    for name, weight in weights.items():
        stem = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{stem}.lora_up.weight" in updates:
            weights[name] = _merged(weight, *(updates[f"{stem}.{part}"] for part in PARTS))
    unet.write_bytes(save(weights, {"format": "pt"}))


PARTS = ("lora_up.weight", "lora_down.weight", "alpha")


def _merged(weight: "NDArray[Any]", up: "NDArray[Any]", down: "NDArray[Any]", alpha: "NDArray[Any]") -> "NDArray[Any]":
    up, down = (one.reshape(len(one), -1).astype("float32") for one in (up, down))
    change = float(alpha) / len(down) * (up @ down)
    return (weight.astype("float32") + change.reshape(weight.shape)).astype(weight.dtype)


def _key(base: Path, lora: Path, folder: Path) -> str:
    """Another one for other files, whichever version brought them."""
    own = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashed = _hash_of(tuple((path, _state(path)) for path in (lora, *own))).copy()
    hashed.update(f"{_sizes(base)} {(base / UNET).stat().st_mtime_ns}".encode())
    return hashed.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """What changes with every change of a file, also where its size and time are set back."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@lru_cache(8)
def _hash_of(files: tuple[tuple[Path, tuple[int, ...]], ...]) -> blake2b:
    """Of what is in files, which are read once for each state: models are looked up several times in a request."""
    return blake2b(b"".join(path.read_bytes() for path, _ in files), digest_size=8)
