"""`undertow generate`: pictures from a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP
from undertow.cli.request_options import changes, with_parts, with_request_options
from undertow.cli.show import show
from undertow.cli.watching import watching
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.records import descriptions

if TYPE_CHECKING:
    from undertow.adapters.lora.bank import AdapterCapacity
    from undertow.engine.result import GenerationResult


EXAMPLE = "red apple on white background"


class Precision(StrEnum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


of_model = partial(typer.Option, rich_help_panel="Model")
of_computing = partial(typer.Option, rich_help_panel="Computing")
of_files = partial(typer.Option, rich_help_panel="Files")


@with_request_options
def generate(
    prompt: Annotated[str | None, typer.Argument(help=descriptions(GenerationRequest)["prompt"])] = None,
    *,
    model: Annotated[str | None, of_model(help=MODEL_HELP, show_default=DEFAULT_MODEL)] = None,
    refiner: Annotated[str | None, of_model(help="Model that draws the last steps (SDXL's refiner).")] = None,
    precision: Annotated[
        Precision | None, of_model(help="Type of the U-Net and the text encoders.", show_default="the file's")
    ] = None,
    vae_precision: Annotated[
        Precision | None, of_model(help="Type of the autoencoder.", show_default="one that does not overflow")
    ] = None,
    prediction: Annotated[
        str | None,
        of_model(help="What the model predicts: epsilon, v or x0.", show_default="as the checkpoint tells"),
    ] = None,
    adapter_slots: Annotated[
        int | None,
        of_model(
            help="Slots for LoRA of rank 16 or less, in place of merging them: faster where scales change over the "
            "steps or regions have LoRA of their own.",
            show_default="merge",
        ),
    ] = None,
    validate_weights: Annotated[
        bool, of_model("--validate-weights", help="Refuse weights that are not numbers, used or not.")
    ] = False,
    device: Annotated[
        str | None,
        of_computing(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu"),
    ] = None,
    flash_attention: Annotated[
        bool | None,
        of_computing(
            "--flash-attention/--no-flash-attention",
            help="PyTorch's fused attention, or scores written out: the same pictures, within rounding.",
            show_default="by type and size",
        ),
    ] = None,
    low_vram: Annotated[bool, of_computing("--low-vram", help="Slower within less memory; the same pictures.")] = False,
    vae_clamp: Annotated[
        bool, of_computing("--vae-clamp", help="Cut the autoencoder's activations at 65,000; changes pictures.")
    ] = False,
    watch: Annotated[
        str, of_computing("--debug", help="What to watch: nan, timing, shapes (a comma list), or all.")
    ] = "",
    repeat: Annotated[
        Path | None,
        of_files(
            "--from", help="Repeat a picture that undertow wrote; what is given beside it replaces what is stored."
        ),
    ] = None,
    preview: Annotated[Path | None, of_files(help="Picture file to keep showing the newest estimate.")] = None,
    out: Annotated[Path, of_files(help="Folder or .png file to write to.")] = Path("out"),
    draw_here: Annotated[
        bool, of_files("--show/--no-show", help="Draw the pictures into the terminal too, where it can.")
    ] = True,
    **options: Any,
) -> None:
    """Draw pictures from a text, and write each with what is needed to repeat it."""
    from undertow.engine.watch import Debug
    from undertow.service import embedded_models, load

    console = Console(stderr=True)
    if repeat is None:
        task = _new(prompt, options)
    else:
        task = _again(repeat, options if prompt is None else {**options, "prompt": prompt}, console)
    source = model if model is not None else task.model
    with console.status(f"loading {source}"):
        service = load(
            source,
            dtype=_dtype(precision, source),
            vae_dtype=_dtype(vae_precision),
            device=_device(device),
            prediction=prediction,
            validate_weights=validate_weights,
            refiner=refiner,
            attention=_kernel(flash_attention),
            adapter_capacity=_capacity(adapter_slots),
        )
    with watching(console, task.request.count, preview) as observe:
        result = service.run(
            task.request, debug=Debug.parse(watch), low_vram=low_vram, vae_clamp=vae_clamp, observe=observe
        )
    if source in embedded_models():  # a picture names the model, not where it lies on this machine
        result = replace(result, report=replace(result.report, model=source))
    paths = _write(result, task.indices, out, console)
    if draw_here:
        show([result.images[index] for index in task.indices])
    if model is None and repeat is None:
        _suggest(paths[0], console)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A request, which of its pictures are written, and the model that draws them."""

    request: GenerationRequest
    indices: Sequence[int]
    model: str = DEFAULT_MODEL


def _new(prompt: str | None, options: Mapping[str, Any]) -> Task:
    """Errors: `InvalidInput`."""
    if prompt is None:
        remedy = f'for example undertow generate "{EXAMPLE}", or repeat a picture with --from'
        raise InvalidInput("prompt", None, "a text, which may be empty", remedy)
    rows = {name: options[name] for name in ("seed", "count") if name in options}
    request = with_parts(GenerationRequest(prompt=prompt, **changes(options), **rows), options)
    return Task(request=request, indices=range(request.count))


def _again(picture: Path, options: Mapping[str, Any], console: Console) -> Task:
    """The request that a picture was drawn by, but for what is given now.

    All pictures of that request are drawn again, as their number may decide the last bits, and the one is written. With
    another seed or number they are other pictures: one, or as many as are asked for, from this one's seed. Errors:
    `InvalidInput`.
    """
    from undertow.engine.metadata import read_png

    prompt = {"prompt": options["prompt"]} if "prompt" in options else {}
    stored = read_png(picture, changes(options) | prompt)
    if options:
        names = ", ".join(name.replace("_", " ") for name in options)
        console.print("note: given now, in place of what is stored:", names, highlight=False, soft_wrap=True)
    request, index = with_parts(stored.request, options), stored.index
    if not options.keys() & {"seed", "count"}:
        return Task(request=request, indices=[index], model=stored.model)
    variation = request.variation_seed
    if variation is not None and "variation" not in options:
        variation += index
    seed, count = options.get("seed", request.seed + index), options.get("count", 1)
    request = replace(request, seed=seed, count=count, variation_seed=variation)
    return Task(request=request, indices=range(count), model=stored.model)


def _write(result: "GenerationResult", indices: Sequence[int], out: Path, console: Console) -> list[Path]:
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
    console.print(f"{len(indices)} of {width}x{height} by {report.sampler}: {stages}", highlight=False)
    return paths


def _suggest(picture: Path, console: Console) -> None:
    """What to try next with the embedded model."""
    for command, meaning in (
        ('"red apple left of dog face on blue background"', "two emoji, and where they stand"),
        ('"(penguin:1.3) on pink background" --count 4', "a weight on words, four pictures"),
        (f"--from {picture} --out again.png", "the same picture again"),
    ):
        console.print(f"try: undertow generate {command}  # {meaning}", markup=False, highlight=False, soft_wrap=True)


def _dtype(precision: Precision | None, source: str = ""):
    """The embedded models are small: computed in float32, they draw the same everywhere."""
    import torch

    from undertow.service import embedded_models

    if precision is None and source in embedded_models():
        return torch.float32
    names = {Precision.f32: torch.float32, Precision.f16: torch.float16, Precision.bf16: torch.bfloat16}
    return None if precision is None else names[precision]


def _capacity(slots: int | None) -> "AdapterCapacity | None":
    """Room for as many LoRAs in one row as there are slots. Errors: `InvalidInput`."""
    from undertow.adapters.lora.bank import AdapterCapacity

    return None if slots is None else AdapterCapacity(slots=slots, per_row=slots)


def _kernel(flash: bool | None) -> str:
    """A name of `attention.choose.kernel_named`."""
    if flash is None:
        return "auto"
    return "sdpa" if flash else "math"


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
