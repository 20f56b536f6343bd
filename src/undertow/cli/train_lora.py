"""`undertow train lora`: low-rank updates of a text-to-image model, from a folder of pictures with captions."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.training_options import (
    BatchSize,
    CheckpointEvery,
    Device,
    Gamma,
    GradientCheckpointing,
    Images,
    LearningRate,
    Out,
    Precision,
    Seed,
    Size,
    Steps,
    Threads,
    Timesteps,
    Title,
    fit_settings,
    load_base,
    shown_training,
)

FormatName = Literal["kohya", "peft"]


def train_lora(
    images: Images,
    model: Model = DEFAULT_MODEL,
    out: Out = Path("runs/lora"),
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
    steps: Steps = 1000,
    batch_size: BatchSize = 4,
    learning_rate: LearningRate = 1e-4,
    dropout_captions: Annotated[float, typer.Option(help="Share of captions that are dropped, for guidance.")] = 0.1,
    timesteps: Timesteps = "uniform",
    min_snr_gamma: Gamma = None,
    size: Size = None,
    format: Annotated[FormatName, typer.Option(help="Names in the file: sd-scripts', or PEFT's.")] = "kohya",
    title: Title = None,
    seed: Seed = 0,
    precision: Precision = "float32",
    gradient_checkpointing: GradientCheckpointing = False,
    device: Device = None,
    threads: Threads = None,
    checkpoint_every: CheckpointEvery = 250,
) -> None:
    """Train a LoRA: what a folder of pictures shows, as a small file beside a text-to-image model.

    The file loads in diffusers, ComfyUI, the web UI and undertow. A run that was killed goes on with the same command.
    """
    from undertow.adapters.lora.write import write_lora
    from undertow.training.lora import LoraSettings, finished
    from undertow.training.lora import train_lora as train
    from undertow.training.low_rank import TRANSFORMERS

    settings = LoraSettings(
        fit=fit_settings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            precision=precision,
            seed=seed,
            checkpoint_every=checkpoint_every,
        ),
        rank=rank,
        alpha=rank if alpha is None else alpha,
        sites=tuple(sites) if sites else TRANSFORMERS,
        text_encoder=text_encoder,
        dropped=dropout_captions,
        timesteps=timesteps,
        min_snr_gamma=min_snr_gamma,
        gradient_checkpointing=gradient_checkpointing,
    )
    console = Console()
    base, pictures = load_base(console, model, images, size, precision, device, threads)
    with shown_training(console, steps) as on_record:
        lora = train(base, pictures, settings, out, on_record=on_record)
    name = out.resolve().name if title is None else title
    path = out / f"{name}.safetensors"
    write_lora(finished(lora, base, pictures, settings, name), path, format=format)
    layers = len(lora.unet) + sum(len(learned) for learned in lora.for_text() or ())
    console.print(
        f"trained: {path} ({layers} layers of rank {rank}, {path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True
    )
