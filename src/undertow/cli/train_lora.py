"""`undertow train lora`: low-rank updates of a text-to-image model, from a folder of pictures with captions."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from undertow.adapters.adapter import Adapter
from undertow.checkpoints.files.destination import require_elsewhere
from undertow.cli.terminal import SafeConsole
from undertow.cli.trained import draw_sample, print_command
from undertow.cli.training_options import TrainingOptions, training_verb
from undertow.lookup import counted
from undertow.shortage import size_in_words

FormatName = Literal["kohya", "peft"]


@training_verb(out=Path("runs/lora"), learning_rate=1e-4)
def train_lora(
    options: TrainingOptions,
    start_from: Annotated[
        Path | None, typer.Option(help="LoRA of this model to train further, whoever trained it.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of every update: its size, and what it can hold.", show_default="8, or --start-from's"),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Updates are scaled by alpha / rank.", show_default="the rank")
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers of the U-Net to adapt, e.g. `*.attn2.to_*` or `*.resnets.*`; repeatable.",
            show_default="all of the transformers, or those of --start-from",
        ),
    ] = None,
    text_encoder: Annotated[bool, typer.Option("--text-encoder", help="Adapt the text encoders too.")] = False,
    dropout_captions: Annotated[float, typer.Option(help="Share of captions that are dropped, for guidance.")] = 0.1,
    format: Annotated[FormatName, typer.Option(help="Names in the file: sd-scripts', or PEFT's.")] = "kohya",
) -> None:
    """Train a LoRA: what a folder of pictures shows, as a small file beside a text-to-image model.

    The file loads in diffusers, ComfyUI, the web UI and undertow. A run that was interrupted goes on with the same
    command, and a finished one with more --steps.
    """
    path = options.out / f"{options.name}.safetensors"
    sources = () if start_from is None else (start_from,)
    options.require(*sources)
    require_elsewhere("--out", path, sources)
    from undertow.adapters.lora.write import write_lora
    from undertow.training.lora import LoraSettings
    from undertow.training.lora import train_lora as train
    from undertow.training.lora_export import export_lora
    from undertow.training.lora_start import read_start
    from undertow.training.low_rank import TRANSFORMERS

    settings = LoraSettings(
        **options.settings(),
        rank=8 if rank is None else rank,
        alpha=alpha if alpha is not None else 8 if rank is None else rank,
        sites=tuple(sites) if sites else TRANSFORMERS,
        text_encoder=text_encoder,
        dropped=dropout_captions,
    )
    console = SafeConsole()
    base, pictures = options.load(console)
    start = None if start_from is None else read_start(start_from, base)
    if start is not None:
        wanted = start.settings(rank=rank, alpha=alpha, sites=sites)
        settings = replace(settings, **wanted, text_encoder=text_encoder or start.has_text)
    with options.shown(console) as shown:
        lora = train(base, pictures, settings, options.out, start=start, **vars(shown))
    write_lora(export_lora(lora, base, pictures, settings, options.name), path, format=format)
    layers = len(lora.unet) + sum(len(learned) for learned in lora.for_text() or ())
    console.print(
        f"trained: {path} ({counted(layers, 'layer')} of rank {settings.rank}, {size_in_words(path.stat().st_size)})",
        soft_wrap=True,
    )
    if not options.no_sample:
        draw_sample(console, base, pictures, Adapter(str(path)), path.with_suffix(".png"))
    print_command(console, pictures.captions[0], options.model, "--lora", str(path))
