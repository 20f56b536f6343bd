"""Files and folders that are written whole or not at all, and JSON objects read.

What is written grows in a draft: a private folder beside the destination, with a random name that nobody can have
prepared, so that neither a link nor a file of that name is followed or replaced. The draft of a process that was killed
stays behind; the next write into the same folder removes it, which a lock tells apart from drafts that still grow.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.locks import lock
from undertow.errors import CorruptFile, UnknownCheckpoint, in_plain_words
from undertow.limits import JSON_BYTES

DRAFT = re.compile(r"\.undertow-[0-9a-f]{16}\.part")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Errors: `UnknownCheckpoint` when there is no file, `CorruptFile` when it is not JSON, or too
    large."""
    if not path.is_file():
        raise UnknownCheckpoint(path, "no such file", "a model folder holds config.json and a .safetensors file")
    if (size := path.stat().st_size) > JSON_BYTES.most:
        raise CorruptFile(path, f"{size:,} bytes; {JSON_BYTES.most:,} are allowed", JSON_BYTES.remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise CorruptFile(path, f"not JSON ({in_plain_words(err)})", "copy or download it again") from err
    if not isinstance(content, dict):
        raise CorruptFile(path, f"a JSON {type(content).__name__}, not an object", "copy or download it again")
    return content


def write_text(text: str, path: Path) -> None:
    """Writes a text file atomically."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yields the path of an empty file of the same name in a draft. It replaces `path` when the block succeeds, with
    the permissions that the umask gives a new file, and is removed when the block fails. A link at `path` is replaced,
    not followed."""
    with _draft_in(path.parent) as folder:
        draft = folder / path.name
        draft.touch(exist_ok=False)
        permissions = draft.stat().st_mode & 0o777
        yield draft
        draft.chmod(permissions)  # safetensors lets nobody but the owner read its files
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Yields an empty folder in a draft. It takes the place of `path`, and of what is there, when the block succeeds,
    and is removed when the block fails."""
    with _draft_in(path.parent) as folder:
        draft = folder / path.name
        draft.mkdir()
        yield draft
        if path.is_dir() and not path.is_symlink():
            path.rename(folder / "replaced")
        draft.rename(path)


@contextmanager
def _draft_in(parent: Path) -> Generator[Path]:
    """A new folder in `parent` that only this user can enter, removed after the block with everything in it."""
    _remove_abandoned_drafts(parent)
    name = f".undertow-{secrets.token_hex(8)}"
    unlocked = parent / f"{name}.new"
    unlocked.mkdir(mode=0o700)
    with lock(unlocked):
        # Whoever looks for abandoned drafts sees this one under its final name only when it is locked.
        draft = unlocked.rename(parent / f"{name}.part")
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _remove_abandoned_drafts(parent: Path) -> None:
    with os.scandir(parent) as entries:
        drafts = [
            entry.path for entry in entries if DRAFT.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    for draft in map(Path, drafts):
        try:
            with lock(draft) as state:
                if state == "held":
                    shutil.rmtree(draft, ignore_errors=True)
        except OSError:  # another process has finished it meanwhile, or it belongs to another user
            continue
