"""`undertow train distill`: fewer forwards per step, fewer steps or fewer weights for a text-to-image model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from undertow.checkpoints.files.atomic import read_json
from undertow.cli.terminal import SafeConsole
from undertow.cli.trained import draw_sample_of, print_command
from undertow.cli.training_options import TrainingOptions, training_verb
from undertow.errors import InvalidInput
from undertow.lookup import counted
from undertow.unet.diffusers_config import config_from_diffusers

if TYPE_CHECKING:
    from undertow.training.distillation import Method
    from undertow.unet.config import UNetConfig

MethodName = Literal["guidance", "lcm", "ect", "features"]
GUIDED = ("guidance", "lcm")
FEW_STEPS = ("lcm", "ect")
STAGES = 8
"""Of consistency tuning, as long as each other unless --tighten-every says otherwise."""


@training_verb(out=Path("runs/distilled"), learning_rate=1e-5)
def train_distill(
    options: TrainingOptions,
    method: Annotated[
        str,
        typer.Option(
            help="What the student learns: guidance, in one forward; lcm, a few steps, with guidance; ect, a few "
            "steps, by tuning on the pictures alone; features, in a smaller network."
        ),
    ],
    guidance: Annotated[
        float | None,
        typer.Option(help="The scale that becomes part of the student, of guidance and lcm.", show_default="5"),
    ] = None,
    original_steps: Annotated[
        int | None, typer.Option(help="Levels of noise that lcm is distilled at, and drawn from.", show_default="50")
    ] = None,
    tighten_every: Annotated[
        int | None,
        typer.Option(help="Steps after which ect's levels come nearer.", show_default="an eighth of --steps"),
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            help="Of features: a smaller U-Net to begin with, such as the folder that `undertow prune` wrote; or only "
            "its architecture, as diffusers' config.json."
        ),
    ] = None,
) -> None:
    """Distill a text-to-image model: without guidance's second forward, in 1 to 4 steps, or with a smaller U-Net.

    OUT/TITLE is a model folder, which undertow and diffusers draw with; after lcm and ect by LCMScheduler. For few
    steps distill guidance first, then tune the result with ect. A run that was interrupted goes on with the same
    command.
    """
    _require_options(method, guidance, original_steps, tighten_every, student)
    begun = student if student is not None and student.is_dir() else None
    architecture = None if student is None or begun is not None else config_from_diffusers(read_json(student))
    options.require(*([] if begun is None else [begun]))
    import torch

    from undertow.checkpoints.read.unet_loading import load_unet_folder
    from undertow.training.distillation import DistillationSettings
    from undertow.training.distillation import train_distilled as train
    from undertow.training.distillation_export import write_distilled

    start = None if begun is None else load_unet_folder(begun, dtype=torch.float32)
    architecture = architecture if start is None else start.config
    every = max(1, options.steps // STAGES) if tighten_every is None else tighten_every
    chosen = _method(method, guidance, original_steps, every, architecture)
    settings = DistillationSettings(**options.settings(), method=chosen)
    console = SafeConsole()
    base, pictures = options.load(console)
    with options.shown(console) as shown:
        unet = train(base, pictures, settings, options.out, start=start, **vars(shown))
    folder = options.out / options.name
    shutil.rmtree(folder, ignore_errors=True)  # of this run, or `require` would have refused it
    write_distilled(unet, base, chosen, folder)
    weights = sum(parameter.numel() for parameter in unet.parameters())
    console.print(f"trained: {folder} (U-Net of {counted(weights, 'weight')})", soft_wrap=True, highlight=False)
    drawn = {"steps": 4} if method in FEW_STEPS else {}
    drawn |= {} if method == "features" else {"guidance_scale": 1.0}
    if not options.no_sample:
        draw_sample_of(console, folder, pictures, folder.with_name(f"{folder.name}.png"), **drawn)
    flags = {"steps": "--steps", "guidance_scale": "--guidance"}
    print_command(
        console, pictures.captions[0], str(folder), *(f"{flags[name]}={value:g}" for name, value in drawn.items())
    )


def _require_options(
    method: str,
    guidance: float | None,
    original_steps: int | None,
    tighten_every: int | None,
    student: Path | None,
) -> None:
    """Errors: `InvalidInput` for an unknown method, and for an option that the method has no use for."""
    if method not in get_args(MethodName):
        raise InvalidInput("--method", repr(method), f"one of {', '.join(get_args(MethodName))}")
    for name, value, methods in (
        ("--guidance", guidance, GUIDED),
        ("--original-steps", original_steps, ("lcm",)),
        ("--tighten-every", tighten_every, ("ect",)),
        ("--student", student, ("features",)),
    ):
        if value is not None and method not in methods:
            raise InvalidInput(name, value, f"nothing with --method {method}", f"it belongs to {' and '.join(methods)}")
    if method == "features" and student is None:
        raise InvalidInput("--student", "nothing", "the config.json of a U-Net with --method features")


def _method(
    name: str,
    guidance: float | None,
    original_steps: int | None,
    tighten_every: int,
    architecture: "UNetConfig | None",
) -> "Method":
    from undertow.training.consistency import Tightening
    from undertow.training.distillation_losses import ConsistencyTuning, GuidanceDistillation, LatentConsistency
    from undertow.training.feature_distillation import FeatureDistillation

    scale = 5.0 if guidance is None else guidance
    match name:
        case "guidance":
            return GuidanceDistillation(guidance=scale)
        case "lcm":
            count = 50 if original_steps is None else original_steps
            return LatentConsistency(guidance=scale, original_steps=count)
        case "ect":
            return ConsistencyTuning(tightening=Tightening(every=tighten_every, stages=STAGES))
        case _:
            assert architecture is not None
            return FeatureDistillation(unet=architecture)
