"""`undertow train lora`: low-rank updates of a text-to-image model, from a folder of pictures with captions."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from undertow.cli.train_pixels import training_progress
from undertow.errors import InvalidInput

FormatName = Literal["kohya", "peft"]


def train_lora(
    images: Annotated[
        Path,
        typer.Option(help="Folder of pictures, their captions in metadata.jsonl, in NAME.txt, or in the files' names."),
    ],
    model: Annotated[
        str, typer.Option(help="A .safetensors file, a pipeline folder, a Hub id or an embedded model.")
    ] = "emoji",
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")] = Path("runs/lora"),
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
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, at its peak.")] = 1e-4,
    dropout_captions: Annotated[float, typer.Option(help="Share of captions that are dropped, for guidance.")] = 0.1,
    timesteps: Annotated[str, typer.Option(help="Levels of noise: uniform, or logit_normal.")] = "uniform",
    min_snr_gamma: Annotated[
        float | None, typer.Option(help="Weights of levels: min-SNR's gamma, usually 5.", show_default="constant")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of a picture, in pixels.", show_default="the model's")] = None,
    format: Annotated[FormatName, typer.Option(help="Names in the file: sd-scripts', or PEFT's.")] = "kohya",
    title: Annotated[str | None, typer.Option(help="The file's name.", show_default="that of --out")] = None,
    seed: Annotated[int, typer.Option(help="All that is random follows from it.")] = 0,
    precision: Annotated[str, typer.Option(help="Of activations: float32 or bf16.")] = "float32",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, slower: recompute activations backward.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="For example cuda.", show_default="cpu")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads.", show_default="all cores")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
) -> None:
    """Train a LoRA: what a folder of pictures shows, as a small file beside a text-to-image model.

    The file loads in diffusers, ComfyUI, the web UI and undertow. A run that was killed goes on with the same command.
    """
    import torch

    from undertow.adapters.lora.write import write_lora
    from undertow.service import load
    from undertow.training.captioned import load_captioned
    from undertow.training.fit import FitSettings
    from undertow.training.lora import LoraSettings, finished
    from undertow.training.lora import train_lora as train
    from undertow.training.lora_base import native_size, require_trainable
    from undertow.training.low_rank import TRANSFORMERS

    if precision not in ("float32", "bf16"):
        raise InvalidInput("--precision", repr(precision), "float32 or bf16")
    if threads is not None:
        torch.set_num_threads(threads)
    fit = FitSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(100, steps // 10),
        ema_decay=0.99,
        precision=precision,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    settings = LoraSettings(
        fit=fit,
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
    with console.status(f"loading {model}"):
        base = load(model, dtype=torch.float32, device=device).model
        require_trainable(base)
        pictures = load_captioned(images, size=native_size(base) if size is None else size)
    with training_progress(console) as progress:
        task = progress.add_task("training", total=steps, figures="")
        lora = train(
            base,
            pictures,
            settings,
            out,
            on_record=lambda record: progress.update(
                task,
                completed=record.step,
                figures=f"loss {record.loss:.4f}  {record.images_per_second:.1f} pictures/s",
            ),
        )
    name = out.resolve().name if title is None else title
    path = out / f"{name}.safetensors"
    write_lora(finished(lora, base, pictures, settings, name), path, format=format)
    layers = len(lora.unet) + sum(len(learned) for learned in lora.for_text() or ())
    console.print(
        f"trained: {path} ({layers} layers of rank {rank}, {path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True
    )
