"""`undertow bench attention`: which kernel is fastest for a model's real shapes, here."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from undertow.cli.model_loading import Precision, find_device
from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP, complete_model, find_model
from undertow.cli.sizes import parse_size
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.errors import InvalidInput
from undertow.known_names import PRECISIONS
from undertow.shortage import size_in_words

if TYPE_CHECKING:
    from undertow.attention.measure import Measured
    from undertow.attention.measurement import Call
    from undertow.unet.config import UNetConfig

LATENT_FACTOR, PIXELS = 8, 1
"""Pixels of a picture to a cell of the network's input, for presets: published latent models, and models of pixels."""


def attention(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{MODEL_HELP} Or a preset: sd15, sdxl, ...", autocompletion=complete_model, callback=find_model
        ),
    ] = DEFAULT_MODEL,
    size: Annotated[
        str | None, typer.Option(help="Of the pictures, WIDTHxHEIGHT in pixels.", show_default="the model's own")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Type that the U-Net computes in.")] = Precision.f32,
    rows: Annotated[int, typer.Option(help="Rows of a forward: 2 for a picture with guidance.", min=1)] = 2,
    tokens: Annotated[int, typer.Option(help="Tokens of the text.", min=1)] = 77,
    repeats: Annotated[int, typer.Option(help="Runs of each kernel, of which the fastest counts.", min=1)] = 5,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1.", show_default="cuda if there is one, else cpu")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Let later runs choose by it: bits of pictures may change.")
    ] = True,
) -> None:
    """Measure the attention kernels at a model's shapes on this machine, and keep the result.

    Every kernel is first compared with the formula in float64; one that is wrong or fails does not count. Models that
    are loaded afterwards, on this device with this PyTorch and as many threads, run the fastest ones, which changes
    their pictures within rounding. Nothing of the model but its architecture is read.
    """
    pixels = None if size is None else parse_size(size)
    console = SafeConsole(soft_wrap=True)
    os.environ.setdefault("KINETO_LOG_LEVEL", "10")  # or PyTorch's profiler says of each run that it ran

    from undertow.attention.measure import gathered, measure
    from undertow.attention.measurement import Machine, Measurements, store, stored_measurements
    from undertow.unet.attention_calls import attention_calls

    place = find_device(device)
    config, factor = architecture(model)
    height, width = cells_of(config, factor, pixels)
    dtype = PRECISIONS[precision.value]
    calls = attention_calls(config, height, width, rows=rows, tokens=tokens, dtype=dtype)
    if not calls:
        raise InvalidInput("model", repr(model), "a model with attention")
    machine = Machine.here(place)
    with waiting(console, f"measuring {len(calls)} shapes"):
        results = list(measure(calls, place, repeats=repeats))
    console.print(_table(f"{model}, {width * factor}x{height * factor}, {rows} rows, {dtype}", calls, results))
    for name, why in _refused(results).items():
        console.print(f"not measured: {name}, because {why}", markup=False, highlight=False)
    if keep:
        before = stored_measurements(place) or Measurements(machine=machine)
        file = store(before.with_calls(gathered(results)))
        console.print(f"kept: {file}", markup=False, highlight=False)
        console.print(f"undertow inspect {model} --attention shows what is chosen now", markup=False, highlight=False)


def architecture(model: str) -> "tuple[UNetConfig, int]":
    """The U-Net's architecture, and the pixels of a picture to a cell of its input. Errors: `InvalidInput` for a
    checkpoint without a U-Net, and those of opening one."""
    from undertow.checkpoints.identify.opening import open_checkpoint
    from undertow.embedded import located
    from undertow.unet.presets import PRESETS

    if model in PRESETS:
        config = PRESETS[model]()
        return config, PIXELS if config.model_type == "pixels" else LATENT_FACTOR
    with open_checkpoint(located(model)) as checkpoint:
        config, vae = checkpoint.identification.config, checkpoint.vae_config
    if config is None:
        raise InvalidInput("model", repr(model), "a checkpoint with a U-Net")
    if vae is not None:
        return config, vae.factor
    return config, PIXELS if config.model_type == "pixels" else LATENT_FACTOR


def cells_of(config: "UNetConfig", factor: int, pixels: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the U-Net's input. Errors: `InvalidInput`."""
    if pixels is None:
        return config.sample_size, config.sample_size
    if any(side < factor or side % factor for side in pixels):
        height, width = pixels
        raise InvalidInput("--size", f"{width}x{height}", f"multiples of {factor}, the pixels of a cell of this model")
    return pixels[0] // factor, pixels[1] // factor


def _table(title: str, calls: "Mapping[Call, int]", results: "Sequence[Measured]") -> Table:
    """Kernels of each shape, from the fastest on."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("queries x keys", "calls", "kernel"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "memory", "error"):
        table.add_column(column, no_wrap=True, justify="right")
    for call, count in calls.items():
        found = [(one.kernel, one.timing) for one in results if one.call == call and one.timing is not None]
        found.sort(key=lambda one: one[1].seconds)
        for index, (kernel, timing) in enumerate(found):
            first = (f"{call.queries} x {call.keys}", str(count)) if index == 0 else ("", "")
            taken = (f"{1e3 * timing.seconds:.2f}", size_in_words(timing.scratch_bytes), f"{timing.error:.0e}")
            table.add_row(*first, kernel, *taken, end_section=index == len(found) - 1)
    return table


def _refused(results: "Sequence[Measured]") -> dict[str, str]:
    """Why kernels were not measured, once each."""
    return {one.kernel: one.refused for one in reversed(results) if one.timing is None}
