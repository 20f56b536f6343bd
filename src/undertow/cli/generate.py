"""`undertow generate`: pictures from a text."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from undertow.cli.show import show
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.engine.events import Observer, StepEvent
    from undertow.engine.metadata import Origin
    from undertow.engine.request import GenerationRequest
    from undertow.engine.result import GenerationResult


DEFAULT_MODEL = "emoji"
EXAMPLE = "red apple on white background"


class Precision(StrEnum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; may be empty, '(like this:1.2)' weighs words.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A .safetensors file, a pipeline folder, a Hub id or an embedded model.", show_default=DEFAULT_MODEL
        ),
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="How closely to follow the prompt; 1 is off.")] = 5.0,
    sampler: Annotated[str, typer.Option(help="Name of the algorithm.")] = "dpmpp_2m",
    schedule: Annotated[str, typer.Option(help="Grid of noise levels.")] = "karras",
    seed: Annotated[int, typer.Option(help="Of the first picture; each next one adds 1.")] = 0,
    count: Annotated[int, typer.Option(help="Number of pictures.")] = 1,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="the model's own")] = None,
    dialect: Annotated[str, typer.Option(help="How prompts are written: plain, a1111, comfy, compel.")] = "a1111",
    clip_skip: Annotated[
        int | None, typer.Option(help="Text layer to read, 1 is the last.", show_default="as trained")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of the U-Net and text.", show_default="the file's")
    ] = None,
    vae_precision: Annotated[
        Precision | None, typer.Option(help="Of the autoencoder.", show_default="one that does not overflow")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="cuda if there is one, else cpu")
    ] = None,
    low_vram: Annotated[bool, typer.Option("--low-vram", help="Slower within less memory; the same pictures.")] = False,
    vae_clamp: Annotated[
        bool, typer.Option("--vae-clamp", help="Cut the autoencoder's activations at 65,000; changes pictures.")
    ] = False,
    validate_weights: Annotated[
        bool, typer.Option("--validate-weights", help="Refuse weights that are not numbers, used or not.")
    ] = False,
    prediction: Annotated[
        str | None, typer.Option(help="epsilon, v or x0.", show_default="as the checkpoint tells")
    ] = None,
    watch: Annotated[str, typer.Option("--debug", help="nan, timing, shapes: a comma list, or all.")] = "",
    repeat: Annotated[Path | None, typer.Option("--from", help="Repeat a picture that undertow wrote.")] = None,
    out: Annotated[Path, typer.Option(help="Folder or .png file to write to.")] = Path("out"),
    draw_here: Annotated[
        bool, typer.Option("--show/--no-show", help="Draw the pictures into the terminal too, where it can.")
    ] = True,
) -> None:
    """Draw pictures from a text, and write each with what is needed to repeat it."""
    from undertow.engine.watch import Debug
    from undertow.service import embedded_models, load

    request, origin = _request(repeat, prompt)
    if origin is None:
        request = replace(
            request, negative_prompt=negative, steps=steps, guidance_scale=guidance, sampler=sampler, schedule=schedule,
            seed=seed, count=count, size=_size(size), dialect=dialect, clip_skip=clip_skip,
        )  # fmt: skip
    source = model if model is not None else DEFAULT_MODEL if origin is None else origin.model
    console = Console(stderr=True)
    with console.status(f"loading {source}"):
        service = load(
            source,
            dtype=_dtype(precision, source),
            vae_dtype=_dtype(vae_precision),
            device=_device(device),
            prediction=prediction,
            validate_weights=validate_weights,
        )
    with _progress(console) as observe:
        result = service.run(request, debug=Debug.parse(watch), low_vram=low_vram, vae_clamp=vae_clamp, observe=observe)
    if source in embedded_models():  # a picture names the model, not where it lies on this machine
        result = replace(result, report=replace(result.report, model=source))
    indices = range(request.count) if origin is None else [origin.index]
    paths = _write(result, indices, out, console)
    if draw_here:
        show([result.images[index] for index in indices])
    if model is None and origin is None:
        _suggest(paths[0], console)


def _request(repeat: Path | None, prompt: str | None) -> "tuple[GenerationRequest, Origin | None]":
    from undertow.engine.metadata import read_png
    from undertow.engine.request import GenerationRequest

    if repeat is not None:
        if prompt is not None:
            raise InvalidInput("prompt", repr(prompt), "none beside --from, which repeats a picture as it was")
        origin = read_png(repeat)
        return origin.request, origin
    if prompt is None:
        remedy = f'for example undertow generate "{EXAMPLE}", or repeat a picture with --from'
        raise InvalidInput("prompt", None, "a text, which may be empty", remedy)
    return GenerationRequest(prompt=prompt), None


def _write(result: "GenerationResult", indices: range | list[int], out: Path, console: Console) -> list[Path]:
    """Writes the pictures, prints what there is to say, and returns where they are."""
    from undertow.engine.metadata import save_png

    report = result.report
    for line in report.debug:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in report.decisions:
        console.print("note:", line, markup=False, highlight=False, soft_wrap=True)
    paths: list[Path] = []
    for index in indices:
        single = out.suffix.lower() == ".png" and len(indices) == 1
        path = out if single else (out.with_suffix("") / f"{report.request.seeds[index]}.png")
        save_png(result.images[index], path, report, index)
        typer.echo(path)
        paths.append(path)
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    height, width = report.size
    console.print(f"{len(indices)} of {width}x{height} by {report.request.sampler}: {stages}", highlight=False)
    return paths


def _suggest(picture: Path, console: Console) -> None:
    """What to try next with the embedded model."""
    for command, meaning in (
        ('"red apple left of dog face on blue background"', "two emoji, and where they stand"),
        ('"(penguin:1.3) on pink background" --count 4', "a weight on words, four pictures"),
        (f"--from {picture} --out again.png", "the same picture again"),
    ):
        console.print(f"try: undertow generate {command}  # {meaning}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> "Generator[Observer]":
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("drawing")

        def observe(event: "StepEvent") -> None:
            progress.update(task, total=event.steps, completed=event.step, description=f"sigma {event.sigma:7.3f}")

        yield observe


def _dtype(precision: Precision | None, source: str = ""):
    """The embedded models are small: computed in float32, they draw the same everywhere."""
    import torch

    from undertow.service import embedded_models

    if precision is None and source in embedded_models():
        return torch.float32
    names = {Precision.f32: torch.float32, Precision.f16: torch.float16, Precision.bf16: torch.bfloat16}
    return None if precision is None else names[precision]


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:  # what torch raises for unknown names and absent devices
        problem = str(err).splitlines()[0]
        raise InvalidInput("--device", repr(name), "a device of this machine: cpu, cuda, mps", problem) from err
    return name


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT, as people say it."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InvalidInput("--size", repr(text), "WIDTHxHEIGHT in pixels, e.g. 512x768")
    return int(parts[1]), int(parts[0])
