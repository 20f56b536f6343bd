"""What a user may give as the place of a model: a path, or an id on the Hub.

Imports no torch, so that a missing file is answered at once.
"""

import re
from pathlib import Path

from undertow.embedded import meant_by, require_named
from undertow.errors import UnknownCheckpoint

HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/(?![\w.-]+\.(safetensors|gguf|ckpt|pt|pth|bin)(@|$))[A-Za-z0-9][\w.-]*)"
    r"(?P<file>(/[\w.-]+)*/[\w.-]+\.(safetensors|gguf))?(@(?P<revision>[\w./-]+))?"
)
"""`owner/name`, optionally with a file and `@revision`: owner/name/file.safetensors@main. A name that ends like a
weights file is taken for a local file that does not exist."""


def is_hub_id(source: str) -> bool:
    """Whether a string has the form of a Hub id."""
    return HUB_ID.fullmatch(source) is not None


def model_name(path: Path) -> str:
    """What a model is called where others read it: its file's or folder's name, or its id on the Hub; never where it
    lies on this machine."""
    repository = next((part for part in path.parts if part.startswith("models--")), None)
    if repository is not None and "snapshots" in path.parts:  # of the Hub's cache: models--owner--name/snapshots/HASH
        return repository.removeprefix("models--").replace("--", "/")
    named = path.resolve() if path.name in ("", "..") else path
    return named.name if named.is_dir() else named.stem


def require_class_model(folder: Path) -> None:
    """Whether a folder is that of a trained class-conditional model. Errors: `UnknownCheckpoint`."""
    if not (folder / "unet" / "config.json").is_file():
        training = (folder / "training").is_dir()
        remedy = "the run has not saved its first checkpoint" if training else "make one with 'undertow train digits'"
        raise UnknownCheckpoint(folder, "no trained model (unet/config.json) there", remedy)


def require_regular(source: str | Path) -> None:
    """Errors: `UnknownCheckpoint` for an empty name, and for what is neither a file nor a folder."""
    require_named(source)
    path = Path(source).expanduser()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UnknownCheckpoint(path, "a pipe or a device, not a model", "give a file or a folder")


def local_path(source: str | Path) -> Path | None:
    """The path itself if it exists; `None` for a Hub id. Errors: `UnknownCheckpoint`."""
    path = Path(source).expanduser()
    require_regular(source)
    if path.exists():
        return path
    # What begins like a path, or does not look like owner/name, was not meant as a Hub id.
    if str(source).startswith((".", "/", "~")) or not is_hub_id(str(source)):
        raise nothing_there(source)
    return None


def nothing_there(source: str | Path) -> UnknownCheckpoint:
    """What is said of a path to nothing."""
    remedy = f"{meant_by(source)}give a .safetensors file, a diffusers folder or a Hub id (owner/name)"
    return UnknownCheckpoint(source, "no such file or folder", remedy)
