"""`undertow quantize`: writes a model with int8 or float8 weights in its linear layers."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from undertow.checkpoints.files.destination import require_destination, require_elsewhere
from undertow.checkpoints.files.place import local_path
from undertow.cli.model_loading import Precision, dtype_of
from undertow.cli.model_option import complete_model, find_model
from undertow.cli.named_files import readable
from undertow.cli.notes import Notes, note_idle
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.embedded import located
from undertow.quantization import Quantization

if TYPE_CHECKING:
    from undertow.inspection.sensitivity import LayerSensitivity

SHOWN = 12
"""Layers in the table of the most sensitive ones, at least those that are kept."""


class Scheme(StrEnum):
    """As `undertow.quantization.Scheme`."""

    INT8_WEIGHTS = "int8-weights"
    INT8_DYNAMIC = "int8-dynamic"
    FLOAT8 = "float8"


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="A .safetensors or .gguf file, a diffusers folder, an embedded model or a Hub id (owner/name).",
            autocompletion=complete_model,
            callback=find_model,
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(help="A new folder, in diffusers' layout, or a file that ends in .safetensors.")
    ],
    to: Annotated[
        Scheme,
        typer.Option(
            "--to",
            help="int8-weights: weights alone. int8-dynamic: inputs of products too, while it draws. float8: the same "
            "in float8, on GPUs.",
        ),
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Layers that stay as they are, by a pattern such as 'unet.time_embedding.*' or 'vae.*'."),
    ] = None,
    keep_most_sensitive: Annotated[
        int,
        typer.Option(
            min=0,
            help="Measure what quantizing each layer does to predictions, and keep this many of those that do most.",
        ),
    ] = 0,
    prompt: Annotated[str, typer.Option(help="Of the picture that --keep-most-sensitive measures with.")] = "",
    dtype: Annotated[
        Precision | None, typer.Option(help="Type of all other weights.", show_default="as they are")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that exists; a folder never is.")
    ] = False,
) -> None:
    """Write a model whose linear layers have int8 or float8 weights: less memory, and a smaller file.

    `undertow generate --model DESTINATION` draws with it, `undertow inspect` says what was done to it, and `undertow
    convert` makes a plain model of it again. LoRA act on it in slots (--adapter-slots). Convolutions stay as they are.
    """
    source = str(located(model))
    place = readable(local_path(source))
    form = "ldm" if destination.suffix in (".safetensors", ".sft") else "diffusers"
    require_elsewhere("destination", destination, [] if place is None else [place])
    require_destination(destination, form, overwrite=overwrite)
    if not keep_most_sensitive:
        note_idle({"--prompt": bool(prompt)}, "without --keep-most-sensitive")
    rules = Quantization(rules=(("*", to.value),)).keeping(keep or ())
    console = SafeConsole(soft_wrap=True)
    from undertow.checkpoints.identify.checkpoint import OpenOptions
    from undertow.checkpoints.write.convert import convert, left_behind

    if keep_most_sensitive:
        rules = _measured(console, source, rules, keep_most_sensitive, prompt)
    written = convert(
        source,
        destination,
        form,
        dtype=dtype_of(dtype),
        opening=OpenOptions(prefer_plain=True),
        overwrite=overwrite,
        quantization=rules,
    )
    console.print(f"layers: {rules}", markup=False, highlight=False)
    console.print(f"wrote {written}", markup=False, highlight=False)
    notes = Notes()
    for line in left_behind(Path(source), written):
        notes.add(line)
    notes.tell(SafeConsole(stderr=True))


def _measured(console: SafeConsole, source: str, rules: Quantization, count: int, prompt: str) -> Quantization:
    """The rules with the most sensitive of their layers kept. Prints these."""
    import torch

    from undertow.engine.request import GenerationRequest
    from undertow.inspection.noisy_picture import NoisyPicture
    from undertow.inspection.sensitivity import measure_error, measure_sensitivity, most_sensitive
    from undertow.loading import load

    with waiting(console, "measuring each layer"):
        service = load(source, dtype=torch.float32, quantize="none")
        probe = NoisyPicture.draw(service.model, service.adapters, GenerationRequest(prompt=prompt))
        every = measure_sensitivity(probe, *rules.schemes)
        found = [one for one in every if rules.scheme(one.name) is not None]
        kept = rules.keeping(most_sensitive(found, count))
        errors = measure_error(probe, rules), measure_error(probe, kept)
    console.print(_table(found, count))
    console.print(f"all layers change predictions by {errors[0]:.2%}; without the kept ones by {errors[1]:.2%}")
    return kept


def _table(found: "list[LayerSensitivity]", kept: int) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")  # alone gives way where there are few columns
    for column in ("weights", "change alone", ""):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    for place, one in enumerate(found[: max(SHOWN, kept)]):
        table.add_row(one.name, f"{one.numbers:,}", f"{one.error:.3%}", "kept" if place < kept else "")
    return table
