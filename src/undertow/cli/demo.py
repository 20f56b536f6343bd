"""`undertow demo`: the ten digits, drawn by both embedded models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from undertow.cli.sample import drawing, model_folder

MODELS = ("digits-ddpm", "digits-flow")


def demo(
    out: Annotated[Path, typer.Option(help="Where the picture is written.")] = Path("out/demo.png"),
    rows: Annotated[int, typer.Option(help="Rows of ten digits per model.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of the first picture.", min=0)] = 0,
) -> None:
    """Draw the ten digits with the two models that ship with undertow, in seconds, and write one picture.

    The upper half is by DDPM (v-prediction), the lower half by rectified flow; both are class-conditional U-Nets
    trained on real handwriting in minutes (docs/results/digits.md).
    """
    import torch  # slow to import

    from undertow.training.figures import save_grid
    from undertow.training.generate import load_class_model, sample_classes, sampling_settings

    console = Console()
    halves = []
    for name in MODELS:
        model = load_class_model(model_folder(name))
        labels = list(range(10)) * rows
        settings = sampling_settings(model.path, guidance=2.0)
        with drawing(console, len(labels), f"{name}, {settings.sampler}, {settings.steps} steps") as on_pictures:
            first = seed + len(halves) * len(labels)  # from one noise both would draw almost the same digits
            seeds = range(first, first + len(labels))
            halves.append(sample_classes(model, labels, seeds, settings, batch_size=10, on_pictures=on_pictures))
    save_grid(torch.cat(halves), 10, out)
    console.print(f"digits 0 to 9, above by {MODELS[0]}, below by {MODELS[1]}: {out}", soft_wrap=True)
