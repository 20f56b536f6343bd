"""`undertow train digits`, `cifar10` and `folder`: a class-conditional pixel model."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from undertow.cli.notes import note_idle
from undertow.cli.option_errors import naming_options, options_of
from undertow.cli.terminal import SafeConsole
from undertow.cli.training_progress import shown_training
from undertow.errors import InvalidInput, naming_file
from undertow.extras import OF_TRAINING, require_packages
from undertow.lookup import look_up
from undertow.pictures.names import require_folder
from undertow.training.run_lock import require_no_training

if TYPE_CHECKING:
    from undertow.training.config import TrainingConfig
    from undertow.training.data import DataSource

DataName = Literal["digits", "cifar10", "folder"]
BadPictures = Literal["refuse", "skip"]
OBJECTIVES = ("ddpm", "flow")
OPTIONS = {"objective.prediction": "--prediction", "gradient_checkpointing": "--recompute"}
"""Of fields with another name."""


def train_pixels(
    data_set: DataName,
    data: Annotated[
        Path | None, typer.Option(help="Of folder: the pictures. Of cifar10: where its archive is.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="ddpm or flow.", show_default="flow")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATA-OBJECTIVE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    resume_step: Annotated[int | None, typer.Option(help="Go on from the checkpoint of this step.", min=1)] = None,
    config_file: Annotated[
        Path | None, typer.Option(help="Start from the settings of a run, its training/config.json, instead of ours.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of a picture, in pixels.", show_default="digits 16, folder 32")
    ] = None,
    gray: Annotated[bool, typer.Option("--gray", help="Of folder: train in one channel.")] = False,
    bad_pictures: Annotated[
        BadPictures, typer.Option(help="Of folder: what to do about files that cannot be read.")
    ] = "refuse",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="by data set")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures per step, of all devices together.", show_default="by data set")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, at its peak.", show_default="by data set")
    ] = None,
    prediction: Annotated[str | None, typer.Option(help="Of ddpm: epsilon or v.", show_default="v")] = None,
    seed: Annotated[int | None, typer.Option(help="All that is random follows from it.", show_default="0")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.", show_default="float32")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, slower: recompute activations backward.")
    ] = False,
    recompute: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint the gradients of this block alone, e.g. up_blocks.1; repeatable."),
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Parameters that do not learn, e.g. 'down_blocks.*'; repeatable.")
    ] = None,
    start_from: Annotated[Path | None, typer.Option(help="Trained model whose weights are the start.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="250")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any other field of config.json; repeatable."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave accelerators alone.")] = False,
) -> None:
    """Train a class-conditional pixel model on digits, CIFAR-10 or a folder of pictures.

    The run's folder is a model that `undertow sample` and diffusers read. A killed run goes on with --resume, and ends
    with the same weights. Several devices: `accelerate launch -m undertow train ...`.
    """
    require_packages("train", OF_TRAINING)
    console = SafeConsole(quiet=os.environ.get("RANK", "0") != "0")  # of several processes one speaks
    out = Path("runs") / f"{data_set}-{'flow' if objective is None else objective}" if out is None else out
    resumes = resume or resume_step is not None
    require_folder(out, "--out")
    require_no_training(out / "training")
    if not resumes:
        _require_data(data_set, data, size, gray=gray, bad_pictures=bad_pictures)
    if config_file is not None and objective is not None:
        raise InvalidInput("--objective", objective, "nothing beside --config-file", "the file says it")
    if objective is not None:
        look_up(dict.fromkeys(OBJECTIVES), objective, "objective")
    _require_there({"--config-file": config_file, "--start-from": start_from})
    parsed = _parsed(settings)
    from undertow.training.config import with_settings  # loads torch
    from undertow.training.pixel_models import stored_config, train_pixel_model

    if resumes:
        config = stored_config(out)
        begun = {"--data": data, "--size": size, "--objective": objective, "--config-file": config_file}
        typed = {name: value is not None for name, value in begun.items()}
        note_idle(typed, "on a run that goes on as it was begun")
    else:
        source = _source(data_set, data, size, gray=gray, bad_pictures=bad_pictures)
        config = _new_config(source, objective, config_file, console)
    given = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "objective.prediction": prediction,
        "seed": seed,
        "precision": precision,
        "gradient_checkpointing": recompute or gradient_checkpointing or None,
        "freeze": freeze,
        "checkpoint_every": checkpoint_every,
        **_start(start_from),
    }
    typed = {name: value for name, value in given.items() if value is not None}
    options = {name: option for name, option in {**options_of(typed), **OPTIONS}.items() if name not in parsed}
    with naming_options(options):
        config = with_settings(config, typed | parsed)
    again = f"undertow train {data_set} --out {out} --resume"
    shows = shown_training(console, config.steps, out / "training" / "checkpoints", again)
    with shows as shown, naming_options(options):
        train_pixel_model(config, out, resume=resume, resume_step=resume_step, cpu=cpu, **vars(shown))
    console.print(f"trained: {out} (loss and samples: {out / 'training'})", soft_wrap=True)
    console.print(f"draw from it: undertow sample {out}", soft_wrap=True)


def _source(
    name: DataName, folder: Path | None, size: int | None, *, gray: bool, bad_pictures: BadPictures
) -> "DataSource":
    from undertow.training.data import Cifar10, Digits, ImageFolder

    if name == "digits":
        return Digits(size=16 if size is None else size)
    if name == "cifar10":
        return Cifar10(folder=str(folder))
    return ImageFolder(
        folder=str(folder), size=32 if size is None else size, channels=1 if gray else 3, bad_pictures=bad_pictures
    )


def _require_data(
    name: DataName, folder: Path | None, size: int | None, *, gray: bool, bad_pictures: BadPictures
) -> None:
    """What is wrong with a data set's options, before torch is imported. Errors: `InvalidInput`."""
    if name != "folder":
        _require_none_of_a_folder(gray=gray, bad_pictures=bad_pictures)
    if name == "digits":
        if folder is not None:
            raise InvalidInput("--data", folder, "nothing, because the digits come with scikit-learn")
        return
    if folder is None:
        raise InvalidInput("--data", None, "a folder of pictures", f"undertow train {name} --data FOLDER")
    _require_there({"--data": folder})
    if name == "cifar10" and size not in (None, 32):
        raise InvalidInput("--size", size, "32, the size of CIFAR-10's pictures")


def _require_there(named: Mapping[str, Path | None]) -> None:
    """named: files and folders by option. Errors: `InvalidInput`."""
    for option, path in named.items():
        if path is not None and not path.expanduser().exists():
            raise InvalidInput(option, repr(str(path)), "a file or folder", "there is no such file or folder")


def _require_none_of_a_folder(*, gray: bool, bad_pictures: BadPictures) -> None:
    expected = "nothing, because only a folder of pictures is read that way"
    if gray:
        raise InvalidInput("--gray", "given", expected, "undertow train folder --data FOLDER --gray")
    if bad_pictures != "refuse":
        raise InvalidInput("--bad-pictures", bad_pictures, expected)


def _new_config(
    source: "DataSource", objective: str | None, config_file: Path | None, console: Console
) -> "TrainingConfig":
    """Our settings for these pictures, or those of a file."""
    from undertow.checkpoints.files.atomic import read_json
    from undertow.training.config import config_from_json, with_data
    from undertow.training.presets import preset

    if config_file is not None:
        with naming_file(config_file):
            return with_data(config_from_json(read_json(config_file)), source)
    pictures = source.open()
    for path in pictures.skipped:
        console.print(f"skipped, cannot be read: {path}", soft_wrap=True, markup=False)
    return preset(source, pictures, "flow" if objective is None else objective)


def _start(start_from: Path | None) -> Mapping[str, Any]:
    """The settings that make a run start from a trained model: its folder, and its architecture."""
    if start_from is None:
        return {}
    from undertow.checkpoints.identify.pipeline_folder import read_config
    from undertow.unet.diffusers_config import config_to_diffusers

    return {"start_from": str(start_from), "unet": config_to_diffusers(read_config(start_from))}


def _parsed(settings: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; values are JSON, or text where they are not."""
    parsed: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise InvalidInput("--set", repr(setting), "NAME=VALUE", "for example --set ema_decay=0.999")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed
