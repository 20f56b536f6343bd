"""Where undertow keeps what it measured or computed on this machine. Imports nothing but the standard library."""

import json
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

VARIABLE = "UNDERTOW_CACHE"


def cache_folder() -> Path:
    """The folder that the environment's UNDERTOW_CACHE names, else `undertow` in XDG_CACHE_HOME or in ~/.cache. All in
    it can be deleted at any time."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "undertow"


def read_cached(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the cache; an empty one where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_cached(content: dict[str, Any], path: Path) -> None:
    """Writes a JSON object whole or not at all, so that a process that reads at the same time sees the old or the new
    one. Errors: `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.", delete=False, encoding="utf-8") as draft:
        json.dump(content, draft, indent=1)
    try:
        Path(draft.name).replace(path)
    except OSError:
        with suppress(OSError):
            Path(draft.name).unlink()
        raise
