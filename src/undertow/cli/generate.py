"""`undertow generate`: pictures from a text.

Everything that can be refused without a model is refused before torch is imported: a mistake is answered at once.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer

from undertow.cli.config import by_parameter, read_config
from undertow.cli.embeddings import require_embeddings, with_embeddings
from undertow.cli.many import draw, require_one_source, tasks_of, wildcards_of
from undertow.cli.model_loading import LoadingOptions, Precision
from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP, complete_model, find_model
from undertow.cli.named_files import require_files, require_own_place
from undertow.cli.repeated import note_another_model, repeated_task
from undertow.cli.request_options import with_request_options
from undertow.cli.show import show
from undertow.cli.task import new_task
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.cli.written_pictures import OVERWRITE_HELP, PictureWriter, suggest
from undertow.engine.debug import Debug
from undertow.engine.request import GROUPS, GenerationRequest
from undertow.picture_names import DEFAULT_NAME, FIELDS, require_picture_file
from undertow.records import descriptions

to_draw = partial(typer.Option, rich_help_panel=GROUPS["prompt"])
of_output = partial(typer.Option, rich_help_panel="Output")
of_model = partial(typer.Option, rich_help_panel="Model")
of_machine = partial(typer.Option, rich_help_panel="Machine")

NAME_HELP = f"Names in a folder, of {', '.join(f'{{{field}}}' for field in FIELDS)}; an ending (.jpg) is the format."
PROMPTS_HELP = "File of prompts, one a line; options follow after |, or it is JSON with the fields of a request."
WILDCARDS_HELP = "Folder of NAME.txt: __NAME__ in a prompt becomes one of its lines, {a|b} one of the two."


@no_type_check  # what typer gives where its public class Context is asked for is an object of its base
def apply_preset(context: typer.Context, name: str | None) -> str | None:
    """Puts a preset's settings in place of the defaults of options."""
    if name is not None:
        options = {one.removeprefix("--"): str(known.name) for known in context.command.params for one in known.opts}
        settings = by_parameter(read_config().preset(name), options)
        context.default_map = {**(context.default_map or {}), **settings}
    return name


@with_request_options
def generate(
    prompt: Annotated[str | None, typer.Argument(help=descriptions(GenerationRequest)["prompt"])] = None,
    *,
    model: Annotated[
        str | None,
        to_draw(
            "--model",
            "-m",
            help=MODEL_HELP,
            show_default=DEFAULT_MODEL,
            autocompletion=complete_model,
            callback=find_model,
        ),
    ] = None,
    repeat: Annotated[
        Path | None,
        to_draw(
            "--from", help="Repeat a picture that undertow wrote; what is given beside it replaces what is stored."
        ),
    ] = None,
    preset: Annotated[  # noqa: ARG001  # its callback puts the settings in place of defaults
        str | None,
        to_draw("--preset", is_eager=True, callback=apply_preset, help="Settings of this name in undertow.toml."),
    ] = None,
    prompts: Annotated[Path | None, to_draw(help=PROMPTS_HELP)] = None,
    wildcards: Annotated[Path | None, to_draw(help=WILDCARDS_HELP)] = None,
    wildcard_seed: Annotated[
        str | None, to_draw(help="Seed of the choices; alone it makes those in braces.", show_default="random")
    ] = None,
    out: Annotated[
        Path, of_output("--out", "-o", help="Folder, or file that ends in .png, .jpg or .webp; - is standard output.")
    ] = Path("out"),
    name: Annotated[str, of_output(help=NAME_HELP)] = DEFAULT_NAME,
    overwrite: Annotated[bool, of_output("--overwrite", help=OVERWRITE_HELP)] = False,
    preview: Annotated[Path | None, of_output(help="Picture file to keep showing the newest estimate.")] = None,
    draw_here: Annotated[
        bool, of_output("--show/--no-show", help="Draw the pictures into the terminal too, where it can.")
    ] = True,
    watch: Annotated[str, of_output("--debug", help="What to watch: nan, timing, shapes (a comma list), or all.")] = "",
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
    allow_pickle: Annotated[
        bool, of_model("--allow-pickle", help="Read the tensors of a pickle (.ckpt), in a process of their own.")
    ] = False,
    device: Annotated[
        str | None,
        of_machine(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu"),
    ] = None,
    flash_attention: Annotated[
        bool | None,
        of_machine(
            "--flash-attention/--no-flash-attention",
            help="PyTorch's fused attention, or scores written out: the same pictures, within rounding.",
            show_default="by type and size",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        of_machine(
            help="What attention kernels are chosen for: speed, memory or balanced; or a kernel by its name.",
            show_default="speed",
        ),
    ] = None,
    low_vram: Annotated[bool, of_machine("--low-vram", help="Slower within less memory; the same pictures.")] = False,
    vae_clamp: Annotated[
        bool, of_machine("--vae-clamp", help="Cut the autoencoder's activations at 65,000; changes pictures.")
    ] = False,
    **options: Any,
) -> None:
    """Draw pictures from a text, and write each with what is needed to repeat it."""
    console = SafeConsole(stderr=True)
    watched = Debug.parse(watch)
    require_one_source(prompt, prompts, repeat)
    choices = wildcards_of(wildcards, wildcard_seed, console)
    if prompts is not None:
        task = None
    elif repeat is None:
        task = new_task(prompt, options)
    else:
        task = repeated_task(repeat, options if prompt is None else {**options, "prompt": prompt}, console, model)
    tasks = tasks_of(task, prompts, options, choices, console)
    source = model if model is not None else read_config().find(tasks[0].model)
    writers = PictureWriter.to_each(out, name, [one.indices for one in tasks], overwrite=overwrite)
    if preview is not None:
        require_picture_file(preview, "--preview")
    for one in tasks:
        for option, place in (("--out", out), ("--preview", preview)):
            if place is not None:
                require_own_place(option, place, one.request, *(() if repeat is None else (repeat,)))
        require_files(one.request, source, refiner)
    embeddings = options.get("embeddings", ())
    require_embeddings(embeddings)
    loading = LoadingOptions(
        precision=precision,
        vae_precision=vae_precision,
        prediction=prediction,
        refiner=refiner,
        adapter_slots=adapter_slots,
        validate_weights=validate_weights,
        allow_pickle=allow_pickle,
        device=device,
        flash_attention=flash_attention,
        attention=attention,
    )
    with waiting(console, f"loading {source}"):
        service = loading.load(source)
    if repeat is not None:
        note_another_model(tasks[0], service, console)
    requests = with_embeddings([one.request for one in tasks], service, embeddings)
    how = {"debug": watched, "low_vram": low_vram, "vae_clamp": vae_clamp}
    results = draw(service, requests, writers, console, preview, **how)
    if draw_here and writers[0].paths:
        show([result.images[index] for result, one in zip(results, tasks, strict=True) for index in one.indices])
    if model is None and repeat is None and writers[0].paths:
        suggest(writers[0].paths[0], console)
