"""What a finished training shows: the command that draws with what was trained, and a first picture."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console

from undertow.cli.model_option import default_model
from undertow.errors import UndertowError

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from undertow.adapters.adapter import Adapter
    from undertow.checkpoints.read.model import LoadedModel
    from undertow.service import UNetService
    from undertow.training.captioned import CaptionedPictures


def print_command(console: Console, prompt: str, model: str, *options: str) -> None:
    """Prints the `undertow generate` line that draws with what was trained."""
    chosen = () if model == default_model() else ("--model", model)
    line = shlex.join(["undertow", "generate", prompt, *options, *chosen])
    console.print(f"draw with it: {line}", soft_wrap=True, highlight=False, markup=False)


def draw_sample(
    console: Console, base: "LoadedModel", pictures: "CaptionedPictures", adapter: "Adapter", file: Path
) -> None:
    """Draws the first caption with an adapter that was trained, and writes the picture."""
    from undertow.service import UNetService

    _draw(console, lambda: UNetService(base), pictures, file, adapters=(adapter,))


def draw_sample_of(console: Console, folder: Path, pictures: "CaptionedPictures", file: Path, **request: Any) -> None:
    """Draws the first caption with a model folder that was trained, and writes the picture. request: its settings."""
    from undertow.loading import load

    _draw(console, lambda: load(folder), pictures, file, **request)


def _draw(
    console: Console,
    service: "Callable[[], UNetService]",
    pictures: "CaptionedPictures",
    file: Path,
    **request: Any,
) -> None:
    """Ctrl-C leaves it undone; what fails here is said, and costs nobody a finished training."""
    try:
        with console.status("drawing a sample; Ctrl-C leaves it out"):
            size = (pictures.size, pictures.size)
            result = service().generate(pictures.captions[0], size=size, **request)
        (written,) = result.save(file, overwrite=True)
    except KeyboardInterrupt:
        return
    except (UndertowError, OSError) as error:
        console.print(f"note: no sample was drawn: {error}", soft_wrap=True, highlight=False, markup=False)
        return
    console.print(f"a sample: {written}", soft_wrap=True, highlight=False, markup=False)


def as_picture(pixels: "UInt8[Tensor, '3 size size']") -> Image.Image:
    """A picture of a training, as a request takes it."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
