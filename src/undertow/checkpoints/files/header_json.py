"""The JSON at the beginning of a safetensors file, as it is written. Imports no torch, so that what a file holds can be
asked before anything slow is imported; `header` says which types and places it names."""

import json
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.sniff import LENGTH_BYTES, require_safetensors
from undertow.errors import CorruptFile

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 50_000
MAX_NAME = 1000
"""Characters of a tensor's name. The longest in use have 150."""
METADATA = "__metadata__"


def read_header_json(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """What stands under each tensor's name, the metadata, and where the tensors begin, in bytes from the start of the
    file. Errors: `UnknownCheckpoint`, `UnsafeFile`, `CorruptFile`."""
    require_safetensors(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise corrupt(path, f"a header of {length:,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        if LENGTH_BYTES + length > size:
            raise corrupt(path, f"cut off: a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateName as err:
        raise corrupt(path, f"the name {str(err)!r} occurs twice in its header") from err
    except (ValueError, RecursionError) as err:
        raise corrupt(path, f"a header that is not JSON ({err})") from err
    if not isinstance(entries, dict):
        raise corrupt(path, f"a header that is a JSON {type(entries).__name__}, not an object")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt(path, "metadata that is not text")
    longest = max(map(len, entries), default=0)
    if longest > MAX_NAME:
        raise corrupt(path, f"a tensor's name of {longest:,} characters; {MAX_NAME:,} are allowed")
    if len(entries) > MAX_TENSORS:
        raise corrupt(path, f"{len(entries):,} tensors; {MAX_TENSORS:,} are allowed")
    return entries, metadata, LENGTH_BYTES + length


class _DuplicateName(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateName(name)
        found[name] = value
    return found


def corrupt(path: Path, problem: str) -> CorruptFile:
    """A file whose header is not what the format says."""
    return CorruptFile(path, problem, "copy or download it again")
