"""The preprocessors of `undertow preprocess` by name, with their default settings."""

from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from undertow.errors import InvalidInput
from undertow.hints.blur import blur, tile
from undertow.hints.edges import canny, line_art, scribble, soft_edges

PREPROCESSORS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "soft-edges": soft_edges,
    "scribble": scribble,
    "lineart": line_art,
    "tile": tile,
    "blur": blur,
}


def require_hint(argument: str, hint: str) -> None:
    """Errors: `InvalidInput` for what is neither one of `PREPROCESSORS` nor a folder."""
    if hint not in PREPROCESSORS and not Path(hint).is_dir():
        known = f"{', '.join(PREPROCESSORS)}, or a folder of hints"
        raise InvalidInput(argument, repr(hint), known, "there is no such folder")
