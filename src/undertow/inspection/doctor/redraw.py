"""A picture drawn again by a process that knows nothing of this one."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from undertow.errors import InvalidInput
from undertow.pictures.files import header_of
from undertow.pictures.names import FORMATS

Redraw = Callable[[Path, Sequence[str]], Image.Image]
"""The picture that a file describes, drawn again. The words are what `undertow generate` is told besides."""

LONGEST_S = 3600.0


def redrawn(picture: Path, options: Sequence[str]) -> Image.Image:
    """Runs `undertow generate --from PICTURE` in a fresh process, in as many threads as this one, into a file of the
    picture's format: JPEG and WebP lose some of what was drawn. Errors: `InvalidInput` with what that said."""
    with header_of("picture", picture) as image:
        ending = next((ending for ending, form in FORMATS.items() if form == image.format), ".png")
    with TemporaryDirectory(prefix="undertow-doctor-") as folder:
        out = Path(folder) / f"again{ending}"
        words = ["generate", "--from", str(picture), *options, "--out", str(out), "--no-show"]
        run = subprocess.run(
            [sys.executable, "-m", "undertow", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_S,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # which decides on bits
        )
        if run.returncode != 0 or not out.is_file():
            said = (run.stderr.strip().splitlines() or ["nothing"])[-1]
            raise InvalidInput("picture", str(picture), "one that can be drawn again here", f"generate said: {said}")
        with Image.open(out) as image:
            return image.convert("RGB")
