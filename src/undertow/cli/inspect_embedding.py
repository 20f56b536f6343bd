"""The table of `undertow inspect FILE` for textual inversions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.errors import CheckpointError, InvalidInput

if TYPE_CHECKING:
    from undertow.checkpoints.read.inversion_file import TextualInversion

SMALL_PICKLE_BYTES = 8 * 2**20
"""Pickles up to this size are opened, in a process of their own, to see whether they are textual inversions."""


def find_inversions(source: str) -> "Sequence[TextualInversion]":
    """Those in a file, none if it is something else or not on this machine."""
    from undertow.checkpoints.files.sniff import sniff

    path = Path(source).expanduser()
    if not path.is_file() or path.stat().st_size == 0:
        return ()
    container = sniff(path)
    if container == "other" and not _is_inversion_picture(path):
        return ()
    from undertow.checkpoints.files.header import read_header
    from undertow.checkpoints.read.inversion_file import read_inversions
    from undertow.checkpoints.read.inversion_names import holds_inversions

    match container:
        case "safetensors":
            holds = holds_inversions(read_header(path).tensors)
        case "pickle":
            holds = path.stat().st_size <= SMALL_PICKLE_BYTES
        case _:
            holds = container == "other"
    try:
        return read_inversions(path, asked=False) if holds else ()
    except (CheckpointError, InvalidInput):
        return ()


def _is_inversion_picture(path: Path) -> bool:
    """Found without torch, because most pictures hold none."""
    from undertow.checkpoints.read.inversion_picture import is_picture, read_inversion_picture

    try:
        return is_picture(path) and bool(read_inversion_picture(path))
    except (CheckpointError, InvalidInput):
        return False


def show_inversions(console: Console, inversions: "Sequence[TextualInversion]") -> None:
    """Prints what they are, and how a prompt calls them."""
    for one in inversions:
        table = Table(title=escape(str(one.path)), show_header=False, title_justify="left", box=None)
        rows = {
            "is": "a textual inversion",
            "written as": one.form,
            "made for": one.made_for,
            "vectors": ", ".join(_shape(kind, list(tensor.shape)) for kind, tensor in one.vectors.items()),
            "in a prompt": " or ".join(one.names),
            "use it by": f"undertow generate '... {one.names[0]} ...' --embedding {one.path} --model MODEL",
        }
        for key, value in rows.items():
            table.add_row(key, escape(value))
        console.print(table)


def _shape(kind: str, shape: Sequence[int]) -> str:
    return f"{shape[0]} of {shape[1]} numbers{f' for {kind}' if kind else ''}"
