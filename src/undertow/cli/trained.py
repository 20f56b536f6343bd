"""What a finished training shows: the command that draws with what was trained, and a first picture."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from undertow.cli.model_option import default_model

if TYPE_CHECKING:
    from undertow.checkpoints.read.model import LoadedModel
    from undertow.training.captioned import CaptionedPictures


def print_command(console: Console, prompt: str, model: str, *options: str) -> None:
    """Prints the `undertow generate` line that draws with what was trained."""
    chosen = () if model == default_model() else ("--model", model)
    line = shlex.join(["undertow", "generate", prompt, *options, *chosen])
    console.print(f"draw with it: {line}", soft_wrap=True, highlight=False, markup=False)


def draw_sample(console: Console, base: "LoadedModel", pictures: "CaptionedPictures", lora: Path) -> None:
    """Draws the first caption with a new LoRA, and writes the picture beside it. Ctrl-C leaves it undone."""
    from undertow.adapters.adapter import Adapter
    from undertow.service import UNetService

    try:
        with console.status("drawing a sample; Ctrl-C leaves it out"):
            size = (pictures.size, pictures.size)
            result = UNetService(base).generate(pictures.captions[0], adapters=(Adapter(str(lora)),), size=size)
    except KeyboardInterrupt:
        return
    (written,) = result.save(lora.with_suffix(".png"), overwrite=True)
    console.print(f"a sample: {written}", soft_wrap=True, highlight=False, markup=False)
