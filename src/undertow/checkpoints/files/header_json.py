"""The JSON at the beginning of a safetensors file, as it is written. Imports no torch, so that what a file holds can be
asked before anything slow is imported; `header` says which types and places it names."""

import json
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.sniff import LENGTH_BYTES, require_safetensors
from undertow.errors import CorruptFile, in_plain_words
from undertow.limits import HEADER_BYTES, NAME_LENGTH, TENSORS, Limit

METADATA = "__metadata__"


def read_header_json(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """What stands under each tensor's name, the metadata, and where the tensors begin, in bytes from the start of the
    file. Errors: `UnknownCheckpoint`, `UnsafeFile`, `CorruptFile`."""
    require_safetensors(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        _require(path, HEADER_BYTES, length, f"a header of {length:,} bytes")
        if LENGTH_BYTES + length > size:
            raise corrupt(path, f"cut off: a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateName as err:
        raise corrupt(path, f"the name {str(err)!r} occurs twice in its header") from err
    except (ValueError, RecursionError) as err:
        raise corrupt(path, f"a header that is not JSON ({in_plain_words(err)})") from err
    if not isinstance(entries, dict):
        raise corrupt(path, f"a header that is a JSON {type(entries).__name__}, not an object")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt(path, "metadata that is not text")
    longest = max(map(len, entries), default=0)
    _require(path, NAME_LENGTH, longest, f"a tensor's name of {longest:,} characters")
    _require(path, TENSORS, len(entries), f"{len(entries):,} tensors")
    return entries, metadata, LENGTH_BYTES + length


def _require(path: Path, limit: Limit, count: int, what: str) -> None:
    if count > limit.most:
        raise CorruptFile(path, f"{what}; {limit.most:,} are allowed", limit.remedy)


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
