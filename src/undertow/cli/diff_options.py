"""The options of `undertow diff`: what is drawn, how each of the two computes, and what is said of it."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from undertow.cli.model_loading import Backend, Precision
from undertow.cli.model_option import complete_model, find_model

of_a = partial(typer.Option, rich_help_panel="How A computes")
of_b = partial(typer.Option, rich_help_panel="How B computes")
Panel = Callable[..., Any]
"""Makes an option, among those of one of the two."""

found_in = partial(typer.Option, rich_help_panel="What is said")


class Against(StrEnum):
    diffusers = "diffusers"


Source = Annotated[
    str | None,
    typer.Argument(
        help="A model; see `undertow generate --model`.", autocompletion=complete_model, callback=find_model
    ),
]
InPlaceOfB = Annotated[
    Against | None,
    typer.Option(help="In place of B: this library's U-Net over the same folder; it must be installed."),
]
ReplayOf = Annotated[
    Path | None, typer.Option(help="Folder of a bundle: whether its departure is there on this machine.")
]

Prompt = Annotated[str, typer.Option(help="Of the picture that both draw.")]
Negative = Annotated[str, typer.Option(help="What not to draw.")]
Steps = Annotated[int, typer.Option(min=1, help="To draw it in.")]
Guidance = Annotated[float, typer.Option(help="1 is off.")]
Seed = Annotated[str, typer.Option(help="Of its noise, or random.")]
Sampler = Annotated[str | None, typer.Option(help="See `undertow samplers`.", show_default="the model's")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="the model's own")]


def _precision(of: Panel) -> Any:
    return of(help="Type of the U-Net and the text encoders.", show_default="the file's")


def _attention(of: Panel) -> Any:
    return of(help="Attention kernel by its name, or speed, memory or balanced.", show_default="speed")


def _backend(of: Panel) -> Any:
    return of(help="Of a compiled or converted network the whole is compared, not the modules in it.")


def _device(of: Panel) -> Any:
    return of(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu")


PrecisionA = Annotated[Precision | None, _precision(of_a)]
PrecisionB = Annotated[Precision | None, _precision(of_b)]
AttentionA = Annotated[str | None, _attention(of_a)]
AttentionB = Annotated[str | None, _attention(of_b)]
BackendA = Annotated[Backend, _backend(of_a)]
BackendB = Annotated[Backend, _backend(of_b)]
DeviceA = Annotated[str | None, _device(of_a)]
DeviceB = Annotated[str | None, _device(of_b)]
LorasA = Annotated[list[str] | None, of_a("--lora-a", help="LORA[@SCALE]; repeatable.")]
LorasB = Annotated[list[str] | None, of_b("--lora-b", help="LORA[@SCALE]; repeatable.")]

Modules = Annotated[
    list[str] | None,
    found_in("--modules", help="Only modules of such names, as 'unet.mid_block*'; repeatable.", show_default="all"),
]
Tolerance = Annotated[
    float | None, found_in(help="Relative error of one module that counts as equal.", show_default="by type")
]
Alone = Annotated[bool, found_in("--alone/--no-alone", help="B also draws by itself, to show how the departure grows.")]
Top = Annotated[int, found_in(min=0, help="Modules to list, those that depart most by themselves.")]
Figure = Annotated[Path | None, found_in(help="Draw growth over layers and steps into this .png, .svg or .pdf.")]
BundleFolder = Annotated[
    Path | None, found_in(help="Folder to write the departure into, so that it can be replayed elsewhere.")
]
Overwrite = Annotated[bool, found_in("--overwrite", help="Replace a --figure or --bundle that exists.")]
AsJson = Annotated[bool, found_in("--json", help="Print what was found as JSON.")]
