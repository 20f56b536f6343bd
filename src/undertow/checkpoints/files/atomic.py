"""Small files: reads JSON objects; writes text and tensors atomically."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from undertow.errors import CorruptFile, UnknownCheckpoint


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Errors: `UnknownCheckpoint` when there is no file, `CorruptFile` when it is not JSON."""
    if not path.is_file():
        raise UnknownCheckpoint(path, "no such file", "a model folder holds config.json and a .safetensors file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise CorruptFile(path, f"not JSON ({err})", "copy or download it again") from err
    if not isinstance(content, dict):
        raise CorruptFile(path, f"a JSON {type(content).__name__}, not an object", "copy or download it again")
    return content


def write_text(text: str, path: Path) -> None:
    """Writes a text file atomically."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically."""
    with atomic_write(path) as draft:
        save_file(dict(tensors), draft, metadata=dict(metadata))


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yields a temporary path beside `path`, which replaces it when the block succeeds and is removed when it fails."""
    draft = path.with_name(path.name + ".part")
    try:
        yield draft
        draft.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody but the owner read its files
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
