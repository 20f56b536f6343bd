"""Hashes by which other tools and model sites know a file of weights; those of large files are remembered.

Model hash    the first 10 digits of the file's SHA-256 (A1111's modules/sd_models.py; Civitai's "AutoV2")
Lora hashes   the first 12 digits of the SHA-256 of what follows a safetensors header, so that a file with another
              title is the same LoRA (A1111's modules/hashes.py; sd-scripts' "sshs_model_hash"; Civitai's "AutoV3")
TI hashes     the first 12 digits of the file's SHA-256 (A1111's modules/textual_inversion/textual_inversion.py)
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from undertow.cache_folder import cache_folder, read_cached, write_cached
from undertow.checkpoints.files.model_folder import find_unet_folder, folder_files, variant_order
from undertow.errors import UndertowError

MODEL_DIGITS, LORA_DIGITS, INVERSION_DIGITS = 10, 12, 12

REMEMBERED_BYTES = 64 * 2**20
"""Smaller files are remembered in the process alone: hashing them takes less than to look them up in a file on disk."""

MOST_REMEMBERED = 1000
"""Files; the ones that were hashed first are forgotten."""

_CHUNK = 2**20


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read once in a process while the file stays the same. Errors: `OSError`."""
    return _in_process(path.resolve(), "file", _version(path))


def model_hash(path: Path) -> str | None:
    """A1111's hash of a model: the beginning of `model_sha256`. `None` for what cannot be read."""
    found = model_sha256(path)
    return None if found is None else found[:MODEL_DIGITS]


def model_sha256(path: Path) -> str | None:
    """SHA-256 of a model's file, or of the U-Net's in a folder. `None` for what cannot be read."""
    try:
        files = [path] if path.is_file() else _unet_files(path)
        whole = [_remembered(file, "file") for file in files]
    except (OSError, UndertowError):
        return None
    return _joined(whole)


def lora_hash(path: Path) -> str | None:
    """A1111's hash of a LoRA. `None` for what cannot be read."""
    try:
        return _remembered(path, "tensors" if path.suffix == ".safetensors" else "file")[:LORA_DIGITS]
    except OSError:
        return None


def inversion_hash(path: Path) -> str | None:
    """A1111's hash of a textual inversion. `None` for what cannot be read, and for a folder."""
    try:
        return _remembered(path, "file")[:INVERSION_DIGITS]
    except OSError:
        return None


def content_hash(files: Sequence[Path]) -> str:
    """SHA-256 of files, or of the digests of several, in the order of their names: whether anything in them changed.
    Errors: `OSError`."""
    return _joined([_remembered(file, "file") for file in sorted(files)])


def _joined(digests: Sequence[str]) -> str:
    """Of the digests of several files, the digest; the digest of one."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _unet_files(folder: Path) -> list[Path]:
    return folder_files(find_unet_folder(folder), variant_order(None))


def _remembered(path: Path, part: str) -> str:
    """SHA-256 of a file, or of its tensors, unless the same file was hashed before."""
    large = path.stat().st_size >= REMEMBERED_BYTES
    return _on_disk(path, part) if large else _in_process(path.resolve(), part, _version(path))


def _version(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=MOST_REMEMBERED)
def _in_process(path: Path, part: str, version: tuple[int, ...]) -> str:
    return _on_disk(path, part) if version[0] >= REMEMBERED_BYTES else _sha256(path, part)


def _on_disk(path: Path, part: str) -> str:
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{part}"
    known = _known()
    if key not in known:
        known[key] = _sha256(path, part)
        _keep(known)
    return known[key]


def _sha256(path: Path, part: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if part == "tensors":
            file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _place() -> Path:
    return cache_folder() / "hashes.json"


def _known() -> dict[str, str]:
    return {key: value for key, value in read_cached(_place()).items() if isinstance(value, str)}


def _keep(known: dict[str, str]) -> None:
    """Best effort: a cache that cannot be written is none."""
    with suppress(OSError):
        write_cached(dict(list(known.items())[-MOST_REMEMBERED:]), _place())
