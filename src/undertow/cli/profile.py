"""`undertow profile`: where the time and the memory of a picture go, layer by layer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.generate_options import AttentionFor, Device
from undertow.cli.model_loading import LoadingOptions, Precision
from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP, complete_model, find_model
from undertow.cli.notes import Notes
from undertow.cli.request_options import request_of
from undertow.cli.suggested import with_suggested
from undertow.cli.terminal import SafeConsole, tell_written
from undertow.cli.tracing import require_trace
from undertow.cli.waiting import waiting
from undertow.errors import InvalidInput
from undertow.shortage import size_in_words

if TYPE_CHECKING:
    from undertow.inspection.profile import Profile


def profile(
    model: Annotated[
        str, typer.Argument(help=MODEL_HELP, autocompletion=complete_model, callback=find_model)
    ] = DEFAULT_MODEL,
    *,
    prompt: Annotated[str, typer.Option(help="What is drawn.")] = "",
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Size of the picture.", show_default="the model's own")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", "-s", min=1, help="Sampling steps that are watched.")] = 4,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures that are drawn together.")] = 1,
    precision: Annotated[
        Precision | None, typer.Option(help="Type of the U-Net and the text encoders.", show_default="the file's")
    ] = None,
    attention: AttentionFor = None,
    device: Device = None,
    top: Annotated[int, typer.Option(min=1, help="Layers, or operations, that are listed.")] = 12,
    operators: Annotated[
        bool, typer.Option("--operators", help="Also PyTorch's own table of operations, by the memory they take.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace of every operation (.json) for chrome://tracing or Perfetto.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Draw a picture, and show where its time and memory went: by layer and resolution, the share of attention, and
    how much of what this machine can multiply is reached."""
    if trace is not None:
        if trace.suffix.lower() != ".json":
            raise InvalidInput("--trace", str(trace), "a file that ends in .json")
        require_trace(trace)
    request = request_of(prompt, {"steps": steps, **({} if size is None else {"size": size})}, count=count)
    loading = LoadingOptions(precision=precision, attention=attention, device=device)
    console = SafeConsole(stderr=True)
    with waiting(console, f"loading {model}"):
        service = loading.load(model)
    notes = Notes()
    request = with_suggested(request, service, {"steps"}, notes)
    notes.tell(console)
    with waiting(console, "drawing"):
        found = service.profile(request)
    _show(found, top=top, as_json=as_json)
    if not operators and trace is None:
        return
    from undertow.inspection.trace_file import traced

    with waiting(console, "drawing again, traced"), traced(service.unet.device, path=trace, top=top) as traced_run:
        service.run(request)
    if operators:
        typer.echo(traced_run.table)
    tell_written(console, trace)


def _show(found: "Profile", *, top: int, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    for stage, seconds in found.report.seconds.items():
        typer.echo(f"{stage:<10} {seconds:9.3f} s")
    typer.echo(f"{found.forwards} evaluations of {found.rows} rows, {1e3 * found.forward_s:.1f} ms each")
    reached = f"{found.reached:.0%} of the {found.peak_flops / 1e9:.3g} GFLOP/s that a matrix product reaches here"
    typer.echo(f"{found.attention_share:.0%} attention; {found.flops / 1e9:.3g} GFLOP, {reached}")
    for level, seconds in found.by_level().items():
        name = "embeddings" if level < 0 else f"level {level}"
        typer.echo(f"{name:<10} {1e3 * seconds:9.1f} ms {seconds / found.forward_s:4.0%}")
    width = max((len(layer.name) for layer in found.slowest(top)), default=0)
    for layer in found.slowest(top):
        typer.echo(
            f"{layer.name:<{width}} {1e3 * layer.seconds:8.2f} ms {layer.seconds / found.forward_s:4.0%} "
            f"{layer.flops / 1e9:8.3f} GFLOP {size_in_words(layer.memory_bytes):>8} of tensors"
        )
    memory = found.report.memory
    if memory.forecast_bytes is not None and memory.peak_bytes is not None:
        forecast, peak = size_in_words(memory.forecast_bytes), size_in_words(memory.peak_bytes)
        typer.echo(f"memory of the process: forecast {forecast}, peak {peak}")
