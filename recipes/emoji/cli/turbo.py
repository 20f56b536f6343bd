"""`python -m recipes.emoji turbo`: the embedded model in few steps."""

from pathlib import Path
from typing import Annotated

import typer

from recipes.emoji.cli.stages import stages_shown
from undertow.cli.model_loading import Threads
from undertow.cli.sample import model_folder
from undertow.cli.terminal import SafeConsole


def turbo(
    model: Annotated[
        str, typer.Option(help="The teacher: pipeline folder of the recipe, or the embedded model.")
    ] = "emoji",
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")] = Path("runs/emoji-turbo"),
    font: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf.", show_default="Debian's")] = None,
    threads: Threads = None,
) -> None:
    """Distill the embedded model: its guidance into one forward, its pictures into 1 to 4 steps, and its autoencoder
    into one of half the channels.

    An hour or two of one core for the embedded model. A run that was killed goes on with the same command. The
    finished model is OUT/turbo/model, for `undertow generate --model`, and for diffusers with LCMScheduler.
    """
    import torch

    from recipes.emoji.editions import edition_of
    from recipes.emoji.render import FONT, Glyphs
    from recipes.emoji.turbo import TurboRecipe, train_turbo
    from undertow.checkpoints.read.model_loading import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    console, folder = SafeConsole(), model_folder(model)
    edition = edition_of(load_model(folder, device="meta").require_vae().config.sample_size)
    with stages_shown(console) as shown:
        glyphs = Glyphs(FONT if font is None else font)
        trained = train_turbo(
            folder,
            out,
            TurboRecipe(),
            edition,
            glyphs,
            on_stage=shown.on_stage,
            on_record=shown.on_record,
            on_count=shown.on_count,
        )
    console.print(f"trained: {trained}", soft_wrap=True)
    line = f'undertow generate --model {trained} --steps 4 --guidance 1 "red apple on white background"'
    console.print(f"draw with it: {line}", soft_wrap=True)
