"""`undertow generate`: pictures from a text."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP
from undertow.cli.request_options import (
    numbers_by_name,
    one_of,
    parse_adapters,
    parse_loras,
    parse_regions,
    parse_sigmas,
    parse_variation,
)
from undertow.cli.show import show
from undertow.cli.watching import watching
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

    from undertow.engine.metadata import Origin
    from undertow.engine.parts import Views
    from undertow.engine.request import GenerationRequest
    from undertow.engine.result import GenerationResult


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
        typer.Option(help=MODEL_HELP, show_default=DEFAULT_MODEL),
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="How closely to follow the prompt; 1 is off.")] = 5.0,
    guidance_method: Annotated[
        str, typer.Option(help="Methods and options, e.g. 'cfg+pag(scale=2,end=0.5)' or 'apg+rescale'.")
    ] = "cfg",
    sampler: Annotated[str, typer.Option(help="Name of the algorithm; see undertow samplers.")] = "dpmpp_2m",
    sampler_options: Annotated[
        list[str] | None, typer.Option("--sampler-option", help="Of the algorithm, e.g. eta=0.5; repeatable.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="Grid of noise levels; see undertow samplers --schedules.")] = "karras",
    sigmas: Annotated[
        str | None, typer.Option(help="Noise levels of one's own in place of schedule and steps, e.g. 14,5,1,0.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture; each next one adds 1.")] = 0,
    count: Annotated[int, typer.Option(help="Number of pictures.")] = 1,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="the model's own")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to start from, or to edit.")] = None,
    strength: Annotated[float, typer.Option(help="How much of --image may change, 0 to 1.")] = 0.8,
    strength_as: Annotated[str, typer.Option(help="How strength counts: diffusers, comfy or a1111.")] = "diffusers",
    mask: Annotated[Path | None, typer.Option(help="White is drawn anew, black is kept; as large as --image.")] = None,
    depth: Annotated[Path | None, typer.Option(help="Depth map for models that read one; near is white.")] = None,
    image_guidance: Annotated[float, typer.Option(help="How closely InstructPix2Pix keeps to --image.")] = 1.5,
    refiner: Annotated[str | None, typer.Option(help="Model that draws the last steps (SDXL's refiner).")] = None,
    refiner_switch: Annotated[float, typer.Option(help="Share of the noise levels before the refiner.")] = 0.8,
    regions: Annotated[
        list[str] | None,
        typer.Option(help="PROMPT@LEFT,TOP,RIGHT,BOTTOM[,WEIGHT]: part of the picture, in fractions; repeatable."),
    ] = None,
    regions_by: Annotated[
        str, typer.Option(help="estimates: one evaluation for each region; attention: one for all.")
    ] = "estimates",
    enlarge: Annotated[
        float | None, typer.Option(help="Draw a second time, this many times larger, from the first picture.")
    ] = None,
    enlarge_strength: Annotated[float, typer.Option(help="How much the second time may change.")] = 0.6,
    views: Annotated[
        bool, typer.Option("--views", help="Overlapping windows, for pictures larger than the model was trained at.")
    ] = False,
    view_overlap: Annotated[
        float | None, typer.Option(help="--views whose neighbors share this part of a window.", show_default="0.5")
    ] = None,
    seamless: Annotated[str, typer.Option(help="Edges that continue each other: none, x, y or both.")] = "none",
    variation: Annotated[str | None, typer.Option(help="SEED:STRENGTH, noise on the way to another seed's.")] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option("--lora", help="FILE[@SCALE[,SCALE...]]; several scales spread over the steps; repeatable."),
    ] = None,
    lora_blocks: Annotated[
        list[str] | None,
        typer.Option("--lora-block", help="PATTERN=FACTOR by layer names, e.g. 'up_blocks.*=0.5'; repeatable."),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="FILE[@SCALE][=PICTURE[,PICTURE...]]: a ControlNet or T2I-Adapter with its control map, an IP-Adapter "
            "with reference pictures, a LoRA; repeatable.",
        ),
    ] = None,
    adapter_masks: Annotated[
        list[str] | None,
        typer.Option("--adapter-mask", help="NAME=PICTURE[,PICTURE...]: where an adapter acts, white; repeatable."),
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="Picture file to keep showing the newest estimate.")] = None,
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
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="PyTorch's fused attention, or scores written out: the same pictures, within rounding.",
            show_default="by type and size",
        ),
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
    from undertow.engine.parts import HighResolution
    from undertow.engine.watch import Debug
    from undertow.picture_files import open_picture
    from undertow.service import embedded_models, load

    given = {"image": image, "mask": mask, "depth": depth}
    pictures = {name: None if path is None else open_picture(f"--{name}", path) for name, path in given.items()}
    request, origin = _request(repeat, prompt, pictures)
    if origin is None:
        variation_seed, variation_strength = parse_variation(variation)
        request = replace(
            request, negative_prompt=negative, steps=steps, guidance_scale=guidance, guidance_method=guidance_method,
            sampler=sampler, sampler_options=numbers_by_name("--sampler-option", sampler_options), schedule=schedule,
            sigmas=parse_sigmas(sigmas), seed=seed, count=count, size=_size(size), dialect=dialect,
            clip_skip=clip_skip, strength=strength,
            strength_convention=one_of("--strength-as", strength_as, "StrengthConvention"),
            image_guidance_scale=image_guidance, refiner_switch=refiner_switch, regions=parse_regions(regions),
            regions_by=one_of("--regions-by", regions_by, "RegionsBy"),
            high_resolution=None if enlarge is None else HighResolution(scale=enlarge, strength=enlarge_strength),
            views=_views(views, view_overlap), seamless=one_of("--seamless", seamless, "Axes"),
            variation_seed=variation_seed, variation_strength=variation_strength,
            adapters=(
                *parse_loras(loras, numbers_by_name("--lora-block", lora_blocks)),
                *parse_adapters(adapters, adapter_masks),
            ),
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
            refiner=refiner,
            attention=_kernel(flash_attention),
        )
    with watching(console, request.count, preview) as observe:
        result = service.run(request, debug=Debug.parse(watch), low_vram=low_vram, vae_clamp=vae_clamp, observe=observe)
    if source in embedded_models():  # a picture names the model, not where it lies on this machine
        result = replace(result, report=replace(result.report, model=source))
    indices = range(request.count) if origin is None else [origin.index]
    paths = _write(result, indices, out, console)
    if draw_here:
        show([result.images[index] for index in indices])
    if model is None and origin is None:
        _suggest(paths[0], console)


def _views(asked: bool, overlap: float | None) -> "Views | None":
    """An overlap asks for views too. Errors: `InvalidInput`."""
    from undertow.engine.parts import Views

    if overlap is not None:
        return Views(overlap=overlap)
    return Views() if asked else None


def _request(
    repeat: Path | None, prompt: str | None, pictures: "dict[str, Image.Image | None]"
) -> "tuple[GenerationRequest, Origin | None]":
    from undertow.engine.metadata import read_png
    from undertow.engine.request import GenerationRequest

    if repeat is not None:
        if prompt is not None:
            raise InvalidInput("prompt", repr(prompt), "none beside --from, which repeats a picture as it was")
        origin = read_png(repeat, **pictures)
        return origin.request, origin
    if prompt is None:
        remedy = f'for example undertow generate "{EXAMPLE}", or repeat a picture with --from'
        raise InvalidInput("prompt", None, "a text, which may be empty", remedy)
    request = GenerationRequest(prompt=prompt, image=pictures["image"], mask=pictures["mask"], depth=pictures["depth"])
    return request, None


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


def _dtype(precision: Precision | None, source: str = ""):
    """The embedded models are small: computed in float32, they draw the same everywhere."""
    import torch

    from undertow.service import embedded_models

    if precision is None and source in embedded_models():
        return torch.float32
    names = {Precision.f32: torch.float32, Precision.f16: torch.float16, Precision.bf16: torch.bfloat16}
    return None if precision is None else names[precision]


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


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT, as people say it."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InvalidInput("--size", repr(text), "WIDTHxHEIGHT in pixels, e.g. 512x768")
    return int(parts[1]), int(parts[0])
