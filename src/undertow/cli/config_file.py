"""Where `undertow.toml` is. Imports nothing else: most command lines have none."""

import os
from pathlib import Path

FILE = "undertow.toml"
VARIABLE = "UNDERTOW_CONFIG"


def config_file() -> Path | None:
    """The file that counts, if there is one."""
    if (named := os.environ.get(VARIABLE)) is not None:
        return Path(named).expanduser() if named else None
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return next((file for file in (Path(FILE), home / "undertow" / FILE) if file.is_file()), None)
