"""`undertow train controlnet`: a network that makes a text-to-image model follow hints, from pictures with captions."""

from pathlib import Path
from typing import Annotated

import typer

from undertow.adapters.adapter import Adapter
from undertow.cli.terminal import SafeConsole
from undertow.cli.trained import as_picture, draw_sample, print_command
from undertow.cli.training_options import TrainingOptions, training_verb
from undertow.hints.preprocessors import PREPROCESSORS, require_hint


@training_verb(out=Path("runs/controlnet"), learning_rate=1e-5)
def train_controlnet(
    options: TrainingOptions,
    hint: Annotated[
        str,
        typer.Option(
            help="What the hints are: canny, soft-edges, scribble, lineart, tile or blur, made from the pictures; or "
            "a folder of hints with the pictures' names."
        ),
    ],
    dropout_captions: Annotated[
        float, typer.Option(help="Share of captions that are dropped, so that hints count where words say little.")
    ] = 0.5,
) -> None:
    """Train a ControlNet: make a text-to-image model follow edges, depth, or any other hint.

    The folder loads in diffusers and undertow. A run that was interrupted goes on with the same command, and
    a finished one with more --steps.
    """
    require_hint("--hint", hint)
    options.require(*(() if hint in PREPROCESSORS else (hint,)))
    from undertow.adapters.control.control_file import write_control
    from undertow.training.controlnet import ControlSettings
    from undertow.training.controlnet import train_controlnet as train
    from undertow.training.paired_images import hints_for

    settings = ControlSettings(
        **options.settings(),
        dropped=dropout_captions,
    )
    console = SafeConsole()
    base, pictures = options.load(console)
    hints = hints_for(pictures, hint, options.images)
    with options.shown(console) as shown:
        control = train(base, pictures, hints, settings, options.out, **vars(shown))
    folder = write_control(control, options.out / options.name)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    console.print(f"trained: {folder} ({weights / 1e6:.1f} MB)", soft_wrap=True, highlight=False)
    if not options.no_sample:
        adapter = Adapter(str(folder), image=as_picture(hints[0]))
        draw_sample(console, base, pictures, adapter, folder.with_name(f"{folder.name}.png"))
    print_command(console, pictures.captions[0], options.model, "--adapter", f"{folder}=HINT.png")
