"""`undertow train lora`: low-rank updates of a text-to-image model, from a folder of pictures with captions."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from undertow.cli.training_options import TrainingOptions, training_verb
from undertow.cli.training_progress import shown_training

FormatName = Literal["kohya", "peft"]


@training_verb(out=Path("runs/lora"), learning_rate=1e-4)
def train_lora(
    options: TrainingOptions,
    rank: Annotated[int, typer.Option(help="Rank of every update: its size, and what it can hold.")] = 8,
    alpha: Annotated[
        float | None, typer.Option(help="Updates are scaled by alpha / rank.", show_default="the rank")
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers of the U-Net to adapt, e.g. `*.attn2.to_*` or `*.resnets.*`; repeatable.",
            show_default="all of the transformers",
        ),
    ] = None,
    text_encoder: Annotated[bool, typer.Option("--text-encoder", help="Adapt the text encoders too.")] = False,
    dropout_captions: Annotated[float, typer.Option(help="Share of captions that are dropped, for guidance.")] = 0.1,
    format: Annotated[FormatName, typer.Option(help="Names in the file: sd-scripts', or PEFT's.")] = "kohya",
) -> None:
    """Train a LoRA: what a folder of pictures shows, as a small file beside a text-to-image model.

    The file loads in diffusers, ComfyUI, the web UI and undertow. A run that was killed goes on with the same command.
    """
    from undertow.adapters.lora.write import write_lora
    from undertow.training.lora import LoraSettings, export_lora
    from undertow.training.lora import train_lora as train
    from undertow.training.low_rank import TRANSFORMERS

    settings = LoraSettings(
        **options.settings(),
        rank=rank,
        alpha=rank if alpha is None else alpha,
        sites=tuple(sites) if sites else TRANSFORMERS,
        text_encoder=text_encoder,
        dropped=dropout_captions,
    )
    console = Console()
    base, pictures = options.load(console)
    with shown_training(console, options.steps) as on_record:
        lora = train(base, pictures, settings, options.out, on_record=on_record)
    path = options.out / f"{options.name}.safetensors"
    write_lora(export_lora(lora, base, pictures, settings, options.name), path, format=format)
    layers = len(lora.unet) + sum(len(learned) for learned in lora.for_text() or ())
    console.print(
        f"trained: {path} ({layers} layers of rank {rank}, {path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True
    )
