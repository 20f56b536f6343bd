"""`undertow bench backends`: what computes a model's U-Net fastest, here."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from undertow.cli.bench_attention import architecture, cells_of
from undertow.cli.model_loading import Precision, dtype_of, find_device
from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP, complete_model, find_model
from undertow.cli.named_files import require_model
from undertow.cli.sizes import parse_size
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting

if TYPE_CHECKING:
    from undertow.unet.backend_measurements import MeasuredForward


def backends(
    model: Annotated[
        str, typer.Argument(help=MODEL_HELP, autocompletion=complete_model, callback=find_model)
    ] = DEFAULT_MODEL,
    size: Annotated[
        str | None, typer.Option(help="Of the pictures, WIDTHxHEIGHT in pixels.", show_default="the model's own")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Type that the U-Net computes in.", show_default="the file's")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of a forward: 2 for a picture with guidance.", min=1)] = 2,
    tokens: Annotated[int, typer.Option(help="Tokens of the text.", min=1)] = 77,
    repeats: Annotated[int, typer.Option(help="Forwards of each backend, whose median counts.", min=1)] = 5,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1.", show_default="cuda if there is one, else cpu")
    ] = None,
    graphs: Annotated[
        bool, typer.Option("--compile", help="Also a graph by torch.compile, which takes minutes to make.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Let `--backend auto` choose by it.")] = True,
) -> None:
    """Time a model's U-Net by each backend on this machine, and keep the result.

    A backend whose prediction differs from the eager network's by more than rounding does not count. Models that are
    loaded afterwards with `--backend auto`, on this device with this PyTorch and as many threads, are run by the
    fastest one.
    """
    pixels = None if size is None else parse_size(size)
    require_model(model)
    console = SafeConsole(soft_wrap=True)

    from undertow.attention.measurement import Machine
    from undertow.loading import load_unet
    from undertow.unet.backend_measurements import BackendMeasurements, Forward, store_backends, stored_backends
    from undertow.unet.choose_backend import choose_backend
    from undertow.unet.measure_backends import measure_backends

    place = find_device(device)
    height, width = cells_of(*architecture(model), pixels)
    with waiting(console, f"loading {model}"):
        unet = load_unet(model, dtype=dtype_of(precision, model), device=place, quantize="none")
    forward = Forward.of(unet.config, unet.dtype, rows=rows, size=(height, width), tokens=tokens)
    chosen = ("eager", "packed", "openvino", *["compile"] * graphs)
    with waiting(console, f"measuring {', '.join(chosen)}"):
        measured = measure_backends(unet, forward, chosen, repeats=repeats)
    console.print(_table(model, measured))
    for name, why in measured.refused.items():
        console.print(f"not measured: {name}, because {why}", markup=False, highlight=False)
    before = stored_backends(place) or BackendMeasurements(machine=Machine.here(place))
    now = before.with_forward(measured)
    console.print(f"--backend auto takes {choose_backend(forward, now)}", markup=False, highlight=False)
    if keep:
        console.print(f"kept: {store_backends(now)}", markup=False, highlight=False)


def _table(model: str, measured: "MeasuredForward") -> Table:
    """Backends, from the fastest on."""
    table = Table(title=f"{model}, {measured.forward}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("backend", no_wrap=True)
    for column in ("ms", "first ms", "error"):
        table.add_column(column, no_wrap=True, justify="right")
    for name, timing in sorted(measured.timings.items(), key=lambda one: one[1].seconds):
        table.add_row(name, f"{1e3 * timing.seconds:.1f}", f"{1e3 * timing.first_seconds:.0f}", f"{timing.error:.0e}")
    return table
