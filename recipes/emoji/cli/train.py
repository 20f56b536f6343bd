"""`python -m recipes.emoji train`: the embedded text-to-image model, from nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from recipes.emoji.cli.stages import stages_shown
from undertow.cli.model_loading import Threads
from undertow.cli.terminal import SafeConsole


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")] = Path("runs/emoji"),
    font: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf.", show_default="Debian's")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Half an hour instead of hours: recognizable, no more.")
    ] = False,
    crisp: Annotated[bool, typer.Option("--crisp", help="The second edition, of 128x128 pictures.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of the text-to-image stage, the last fifth cooling down.", show_default="the recipe's"
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="A folder of AutoencoderKL, trained by this recipe before.", show_default="trained here"),
    ] = None,
    threads: Threads = None,
) -> None:
    """Train the embedded model `emoji`: autoencoder, text encoder and U-Net, on pictures of the Noto Color Emoji font.

    Hours on two cores. A run that was killed goes on with the same command. Loss curves and sample sheets appear in
    --out while it trains; the finished model is OUT/model, for `undertow generate --model` and for diffusers.
    """
    import torch

    from recipes.emoji.recipe import CRISP_RECIPE, EmojiRecipe, train_emoji
    from recipes.emoji.recipe import quick as shortened
    from recipes.emoji.render import FONT
    from undertow.training.precision import precision_notes

    if threads is not None:
        torch.set_num_threads(threads)
    console = SafeConsole()
    for note in precision_notes("bf16", "cpu"):
        console.print("note:", note, soft_wrap=True)
    recipe = CRISP_RECIPE if crisp else EmojiRecipe()
    recipe = shortened(recipe) if quick else recipe
    if steps is not None:
        recipe = replace(recipe, text_to_image=replace(recipe.text_to_image, steps=steps))
    with stages_shown(console) as callbacks:
        model = train_emoji(
            out, recipe, font=FONT if font is None else font, autoencoder=autoencoder, callbacks=callbacks
        )
    console.print(f"trained: {model}", soft_wrap=True)
    console.print(f'draw with it: undertow generate --model {model} "red apple on white background"', soft_wrap=True)
