"""`undertow convert`: converts a checkpoint to another format or type."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from undertow.checkpoints.files.destination import require_destination, require_elsewhere
from undertow.checkpoints.files.gguf_types import OTHERS, QUANTIZED, require_quantization
from undertow.checkpoints.files.place import local_path
from undertow.cli.model_option import complete_model, find_model
from undertow.cli.named_files import readable
from undertow.cli.notes import Notes
from undertow.cli.other_names import value_called_here
from undertow.cli.terminal import SafeConsole
from undertow.embedded import located
from undertow.errors import InvalidInput
from undertow.extras import require_packages
from undertow.known_names import PRECISIONS


class Form(StrEnum):
    """The formats that can be written."""

    DIFFUSERS = "diffusers"
    LDM = "ldm"
    GGUF = "gguf"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A .safetensors or .gguf file, a diffusers folder, an embedded model or a Hub id (owner/name).",
            autocompletion=complete_model,
            callback=find_model,
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="A new folder, or a file that ends in .safetensors or .gguf.")],
    to: Annotated[
        Form,
        typer.Option("--to", help="A diffusers folder, or one file with LDM's names, also for stable-diffusion.cpp."),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            "--type",
            help=f"Type of the weights: {', '.join(PRECISIONS)}; of the matrices of a GGUF file also "
            f"{', '.join(QUANTIZED)}.",
            show_default="as they are",
        ),
    ] = None,
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
    """Convert a checkpoint between a single file and a diffusers folder. Without --dtype, it is exact, bit for bit.

    Quantized to GGUF, what is no matrix stays as it is: convert a model in float32 to f16 first.
    """
    plain, gguf_type = _split(dtype, to)
    source = str(located(source))
    place = readable(local_path(source))
    require_elsewhere("destination", destination, [] if place is None else [place])
    require_destination(destination, to.value, overwrite=overwrite)
    if to is Form.GGUF:
        require_packages("gguf", {"gguf": "gguf"})
    import torch

    from undertow.checkpoints.identify.checkpoint import OpenOptions
    from undertow.checkpoints.write.convert import convert as convert_checkpoint
    from undertow.checkpoints.write.convert import left_behind

    opening = OpenOptions(ema=ema, prediction=prediction, allow_pickle=allow_pickle, prefer_plain=True)
    written = convert_checkpoint(
        source,
        destination,
        to.value,
        dtype=None if plain is None else getattr(torch, PRECISIONS[plain]),
        gguf_type=gguf_type,
        opening=opening,
        overwrite=overwrite,
    )
    SafeConsole().print(f"wrote {written}", markup=False, highlight=False, soft_wrap=True)
    notes = Notes()
    for line in left_behind(Path(source), written):
        notes.add(line)
    notes.tell(SafeConsole(stderr=True))


def _split(dtype: str | None, to: Form) -> tuple[str | None, str | None]:
    """The type of all weights, and that of the matrices of a GGUF file. Errors: `InvalidInput`."""
    if dtype is None or dtype in PRECISIONS:
        return dtype, None
    if dtype not in QUANTIZED and dtype.lower() not in OTHERS:
        ours = value_called_here(dtype, PRECISIONS)
        remedy = "" if ours is None else f"here it is called {ours}"
        raise InvalidInput("--dtype", repr(dtype), f"one of {', '.join((*PRECISIONS, *QUANTIZED))}", remedy)
    require_quantization("--dtype", dtype, to.value)
    return None, dtype
