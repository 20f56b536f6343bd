"""`undertow train controlnet`: a network that makes a text-to-image model follow hints, from pictures with captions."""

from pathlib import Path
from typing import Annotated

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


def train_controlnet(
    images: Images,
    hint: Annotated[
        str,
        typer.Option(
            help="What the hints are: canny, soft-edges, scribble, lineart, tile or blur, made from the pictures; or "
            "a folder of hints with the pictures' names."
        ),
    ],
    model: Model = DEFAULT_MODEL,
    out: Out = Path("runs/controlnet"),
    steps: Steps = 1000,
    batch_size: BatchSize = 4,
    learning_rate: LearningRate = 1e-5,
    dropout_captions: Annotated[
        float, typer.Option(help="Share of captions that are dropped, so that hints count where words say little.")
    ] = 0.5,
    timesteps: Timesteps = "uniform",
    min_snr_gamma: Gamma = None,
    size: Size = None,
    title: Title = None,
    seed: Seed = 0,
    precision: Precision = "float32",
    gradient_checkpointing: GradientCheckpointing = False,
    device: Device = None,
    threads: Threads = None,
    checkpoint_every: CheckpointEvery = 250,
) -> None:
    """Train a ControlNet: make a text-to-image model follow edges, depth, or any other hint.

    The folder loads in diffusers and undertow. A run that was killed goes on with the same command.
    """
    from undertow.adapters.control.control_file import write_control
    from undertow.training.companions import hints_for
    from undertow.training.controlnet import ControlSettings
    from undertow.training.controlnet import train_controlnet as train

    settings = ControlSettings(
        fit=fit_settings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            precision=precision,
            seed=seed,
            checkpoint_every=checkpoint_every,
        ),
        dropped=dropout_captions,
        timesteps=timesteps,
        min_snr_gamma=min_snr_gamma,
        gradient_checkpointing=gradient_checkpointing,
    )
    console = Console()
    base, pictures = load_base(console, model, images, size, precision, device, threads)
    hints = hints_for(pictures, hint, images)
    with shown_training(console, steps) as on_record:
        control = train(base, pictures, hints, settings, out, on_record=on_record)
    folder = write_control(control, out / (out.resolve().name if title is None else title))
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    console.print(f"trained: {folder} ({weights / 1e6:.1f} MB)", soft_wrap=True, highlight=False)
