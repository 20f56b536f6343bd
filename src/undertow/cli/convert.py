"""`undertow convert`: converts a checkpoint to another format or type."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from undertow.checkpoints.files.destination import require_destination, require_elsewhere
from undertow.checkpoints.files.place import local_path
from undertow.cli.named_files import readable
from undertow.cli.terminal import SafeConsole


class Form(StrEnum):
    """The formats that can be written."""

    DIFFUSERS = "diffusers"
    LDM = "ldm"


class Precision(StrEnum):
    """The types that weights can be written in."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"


def convert(
    source: Annotated[
        str, typer.Argument(help="A .safetensors or .gguf file, a diffusers folder or a Hub id (owner/name).")
    ],
    destination: Annotated[Path, typer.Argument(help="A new folder, or a file that ends in .safetensors.")],
    to: Annotated[Form, typer.Option("--to", help="A diffusers folder, or one file with LDM's names.")],
    dtype: Annotated[Precision | None, typer.Option(help="Type of the weights.", show_default="as they are")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Write the averaged (EMA) weights of the U-Net.")] = False,
    prediction: Annotated[
        str | None, typer.Option(help="What the U-Net predicts: epsilon, v or x0.", show_default="found")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read the tensors of a pickle, in a separate process.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that exists; a folder never is.")
    ] = False,
) -> None:
    """Convert a checkpoint between a single file and a diffusers folder. Without --dtype, it is exact, bit for bit."""
    place = readable(local_path(source))
    require_elsewhere("destination", destination, [] if place is None else [place])
    require_destination(destination, to.value, overwrite=overwrite)
    import torch

    from undertow.checkpoints.identify.checkpoint import OpenOptions
    from undertow.checkpoints.write.convert import convert as convert_checkpoint

    types = {Precision.F32: torch.float32, Precision.F16: torch.float16, Precision.BF16: torch.bfloat16}
    opening = OpenOptions(ema=ema, prediction=prediction, allow_pickle=allow_pickle, prefer_plain=True)
    written = convert_checkpoint(
        source,
        destination,
        to.value,
        dtype=None if dtype is None else types[dtype],
        opening=opening,
        overwrite=overwrite,
    )
    SafeConsole().print(f"wrote {written}", markup=False, highlight=False, soft_wrap=True)
