"""The options of `undertow generate` besides those of a request: sources, output, model and machine."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from undertow.cli.config import config_file, preset_settings
from undertow.cli.model_loading import Backend, Precision, Quantized
from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP, complete_model, find_model
from undertow.cli.preset_values import require_kind
from undertow.cli.request_options import request_of
from undertow.cli.usage import expectation
from undertow.cli.written_pictures import OVERWRITE_HELP
from undertow.engine.request import GROUPS, GenerationRequest
from undertow.errors import InvalidInput
from undertow.pictures.names import FIELDS
from undertow.records import descriptions

to_draw = partial(typer.Option, rich_help_panel=GROUPS["prompt"])
of_output = partial(typer.Option, rich_help_panel="Output")
of_model = partial(typer.Option, rich_help_panel="Model")
of_machine = partial(typer.Option, rich_help_panel="Machine")


def apply_preset(context: Any, name: str | None) -> str | None:
    """Puts a preset's settings in place of the defaults of options. context: typer's, whose type is not its public
    class `Context`. Errors: `InvalidInput` names the preset and its file."""
    if name is None:
        return None
    known = {option.removeprefix("--"): one for one in context.command.params for option in one.opts}
    settings = preset_settings(name, known)
    where = f"[presets.{name}] of {config_file()}"
    typed = {known[option].name: value for option, value in settings.items()}
    for option, value in settings.items():
        require_kind(option, value, known[option].type_descriptor.annotation, f"{option} in {where}")
        if known[option].callback is not None:  # of models, which are looked for later
            continue
        try:
            typed[known[option].name] = known[option].process_value(context, value)
        except typer.TyperException as err:
            expected = expectation(err.format_message()) or "a value of that option"
            raise InvalidInput(f"{option} in {where}", repr(value), expected) from err
    try:
        request_of("", typed)
    except InvalidInput as err:
        raise InvalidInput(f"{err.argument} in {where}", err.value, err.expected, err.remedy) from err
    context.default_map = {**(context.default_map or {}), **{known[key].name: value for key, value in settings.items()}}
    return name


class WhereNonFinite(StrEnum):
    """As `engine.options.NonFinite`, which imports torch."""

    upcast = "upcast"
    clamp = "clamp"
    fail = "fail"
    keep = "keep"


Prompt = Annotated[str | None, typer.Argument(help=descriptions(GenerationRequest)["prompt"])]

ModelOrNone = Annotated[
    str | None,
    to_draw(
        "--model",
        "-m",
        help=MODEL_HELP,
        show_default=DEFAULT_MODEL,
        autocompletion=complete_model,
        callback=find_model,
    ),
]
Repeat = Annotated[
    Path | None,
    to_draw(
        "--from",
        help="Repeat a picture that undertow, A1111 or ComfyUI described; what is given beside it replaces what is "
        "stored: --lora all LoRAs, --adapter the one of its name, or one more.",
    ),
]
Preset = Annotated[
    str | None,
    to_draw("--preset", is_eager=True, callback=apply_preset, help="Settings of this name in undertow.toml."),
]
Prompts = Annotated[
    Path | None,
    to_draw(
        help="File of prompts, one a line; options follow after |, or it is JSON with the fields of a request.",
    ),
]
WildcardFolder = Annotated[
    Path | None,
    to_draw(help="Folder of NAME.txt: __NAME__ in a prompt becomes one of its lines, {a|b} one of the two."),
]
WildcardSeed = Annotated[
    str | None, to_draw(help="Seed of the choices; alone it makes those in braces.", show_default="random")
]

Out = Annotated[
    Path, of_output("--out", "-o", help="Folder, or file that ends in .png, .jpg or .webp; - is standard output.")
]
Name = Annotated[
    str,
    of_output(help=f"Names in a folder, of {', '.join(f'{{{field}}}' for field in FIELDS)}; an ending (.jpg) is the "
              "format."),
]  # fmt: skip
Overwrite = Annotated[bool, of_output("--overwrite", help=OVERWRITE_HELP)]
Preview = Annotated[Path | None, of_output(help="Picture file to keep showing the newest estimate.")]
Watch = Annotated[
    str, of_output("--debug", help="What to watch: timing, nan, shapes, vae, sampler, layers (a comma list), or all.")
]
Trace = Annotated[Path | None, of_output(help="File for a JSON line of every layer's input and output at every step.")]
ReportPage = Annotated[
    Path | None, of_output("--report", help="Page (.html) of the pictures, and of where their time and memory went.")
]

Refiner = Annotated[str | None, of_model(help="Model that draws the last steps (SDXL's refiner).")]
PrecisionOrNone = Annotated[
    Precision | None, of_model(help="Type of the U-Net and the text encoders.", show_default="the file's")
]
VaePrecision = Annotated[
    Precision | None, of_model(help="Type of the autoencoder.", show_default="one that does not overflow")
]
Prediction = Annotated[
    str | None, of_model(help="What the model predicts: epsilon, v or x0.", show_default="as the checkpoint tells")
]
AdapterSlots = Annotated[
    int | None,
    of_model(
        help="Slots for LoRA of rank 16 or less, in place of merging them: faster where scales change over the "
        "steps or regions have LoRA of their own.",
        show_default="merge",
        min=1,
    ),
]
ValidateWeights = Annotated[
    bool, of_model("--validate-weights", help="Refuse weights that are not numbers, used or not.")
]
AllowPickle = Annotated[
    bool, of_model("--allow-pickle", help="Read the tensors of a pickle (.ckpt), in a process of their own.")
]

Device = Annotated[
    str | None, of_machine(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu")
]
FlashAttention = Annotated[
    bool | None,
    of_machine(
        "--flash-attention/--no-flash-attention",
        help="PyTorch's fused attention, or scores written out: the same pictures, within rounding.",
        show_default="by type and size",
    ),
]
AttentionFor = Annotated[
    str | None,
    of_machine(
        help="What attention kernels are chosen for: speed, memory or balanced; or a kernel by its name.",
        show_default="speed",
    ),
]
BackendOf = Annotated[
    Backend | None,
    of_machine(
        "--backend",
        help="What computes the U-Net: eager; packed, with weights in the order of this CPU's products; compile, whose "
        "first call waits for its graph; background, which does not; openvino; or auto, by what `undertow bench "
        "backends` measured.",
        show_default="eager",
    ),
]
QuantizeTo = Annotated[
    Quantized | None,
    of_machine(
        "--quantize",
        help="Weights of linear layers, while the model is loaded: int8-weights, int8-dynamic (inputs too), float8 (on "
        "GPUs); none gives back plain ones. LoRA then need --adapter-slots. `undertow quantize` writes such a model.",
        show_default="as the model was written",
    ),
]
LowVram = Annotated[
    bool,
    of_machine("--low-vram", help="Networks are in memory only while they work, decoding in tiles; the same pictures."),
]
Budget = Annotated[
    str | None,
    of_machine(
        help="Memory to keep to, of the process or the GPU: 6GB, 512MiB. What gives way for it is reported; the same "
        "pictures, within rounding.",
        show_default="all there is",
    ),
]
NonFinite = Annotated[
    WhereNonFinite,
    of_machine(
        help="Where the network predicts NaN or Inf: upcast computes the module at fault in float32, clamp cuts what "
        "overflows (another picture), fail ends with what was found, keep goes on."
    ),
]
VaeClamp = Annotated[
    bool, of_machine("--vae-clamp", help="Cut the autoencoder's activations at 65,000; changes pictures.")
]
