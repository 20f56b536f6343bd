"""Where the options of `undertow train digits`, `cifar10` and `folder` arrive: the pictures' source, the preset that
settings start from, and the settings that are trained with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.cli.options.arrival import ABSENT, Boundary, Case, Command, case
from undertow.embedded import embedded_models
from undertow.training.augmentation import Augmentation
from undertow.training.config import TrainingConfig, config_to_json, pixel_unet
from undertow.training.data import Cifar10, DataSource, Digits, ImageFolder
from undertow.training.objective import Ddpm, Flow
from undertow.training.pictures import Pictures
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers

CONFIG = "config"


def unet() -> UNetConfig:
    pictures = Pictures(
        pixels=torch.zeros(1, 1, 8, 8, dtype=torch.uint8), labels=torch.zeros(1, dtype=torch.long), class_names=("a",)
    )
    return pixel_unet(pictures, widths=(8, 16), head_dim=8)


def base(data: DataSource, objective: Ddpm | Flow, **other: Any) -> TrainingConfig:
    """Settings like no other, which the preset, a file or a run that is resumed give."""
    return TrainingConfig(data=data, objective=objective, unet=unet(), **{"steps": 11, "batch_size": 12, **other})


OBJECTIVES = {"ddpm": Ddpm(prediction="v"), "flow": Flow()}
OF_A_FILE = base(Digits(size=8), Ddpm(prediction="epsilon"), steps=21, ema_decay=0.25)
OF_A_RUN = base(Digits(size=8), Flow(), steps=31, ema_decay=0.75)


def boundary(at: Boundary) -> None:
    Path("settings.json").write_text(json.dumps(config_to_json(OF_A_FILE)))
    for folder in ("pictures", "archive", "other"):
        Path(folder).mkdir()
    for kind in ("Digits", "Cifar10", "ImageFolder"):
        at.patch.setattr(f"undertow.training.data.{kind}.open", lambda _: SimpleNamespace(skipped=()))

    def preset(data: DataSource, pictures: Any, objective: str) -> TrainingConfig:
        return base(data, OBJECTIVES[objective])

    at.stand_in("undertow.training.presets.preset", preset, unnoted=("pictures",))
    at.stand_in("undertow.training.pixel_models.stored_config", lambda _: OF_A_RUN)
    at.stand_in(
        "undertow.training.pixel_models.train_pixel_model", unnoted=("on_resume", "on_record", "stop"), apart=(CONFIG,)
    )


def config(data: DataSource) -> dict[str, Any]:
    """All settings, when the preset's are trained with."""
    return {
        "config.data": data,
        "config.objective": Flow(),
        "config.unet": unet(),
        "config.steps": 11,
        "config.batch_size": 12,
        "config.learning_rate": 1e-3,
        "config.optimizer": "adamw",
        "config.warmup_steps": 100,
        "config.decay": "cosine",
        "config.weight_decay": 0.01,
        "config.clip_norm": 1.0,
        "config.ema_decay": 0.995,
        "config.label_dropout": 0.1,
        "config.augmentation": Augmentation(),
        "config.precision": "float32",
        "config.gradient_checkpointing": False,
        "config.freeze": (),
        "config.start_from": None,
        "config.seed": 0,
        "config.log_every": 10,
        "config.sample_every": 500,
        "config.checkpoint_every": 250,
        "config.keep_checkpoints": 2,
    }


NO_PRESET = {"preset__data": ABSENT, "preset__objective": ABSENT}
RESUMED = {**NO_PRESET, "config__data": OF_A_RUN.data, "config__steps": 31, "config__ema_decay": 0.75}
DIGITS_FLOW = embedded_models()["digits-flow"]


def cases(name: str) -> tuple[Case, ...]:
    """Those of all three kinds of pictures. name: of the kind."""
    out = Path(f"runs/{name}-ddpm")
    ddpm = {"preset__objective": "ddpm", "train_pixel_model__out": out}
    trained = config_from_diffusers(json.loads((DIGITS_FLOW / "unet/config.json").read_text()))
    return (
        case("--objective", "ddpm", config__objective=Ddpm(prediction="v"), **ddpm),
        case("--objective", "ddpm", "--prediction", "epsilon", config__objective=Ddpm(prediction="epsilon"), **ddpm),
        case("--out", "mine", train_pixel_model__out=Path("mine")),
        case("--resume", "--out", "mine", **RESUMED | {"config__data": OF_A_RUN.data}, train_pixel_model__resume=True,
             train_pixel_model__out=Path("mine"), stored_config__out=Path("mine")),
        case("--resume-step", "7", "--out", "mine", **RESUMED, train_pixel_model__resume_step=7,
             train_pixel_model__out=Path("mine"), stored_config__out=Path("mine")),
        case("--config-file", "settings.json", **NO_PRESET, config__objective=Ddpm(prediction="epsilon"),
             config__steps=21, config__ema_decay=0.25),
        case("--steps", "41", config__steps=41),
        case("--batch-size", "42", config__batch_size=42),
        case("--learning-rate", "0.003", config__learning_rate=0.003),
        case("--seed", "13", config__seed=13),
        case("--precision", "bf16", config__precision="bf16"),
        case("--gradient-checkpointing", config__gradient_checkpointing=True),
        case("--recompute", "up_blocks.0", config__gradient_checkpointing=("up_blocks.0",)),
        case("--freeze", "conv_in.*", "--freeze", "mid_block.*", config__freeze=("conv_in.*", "mid_block.*")),
        case("--start-from", str(DIGITS_FLOW), config__start_from=str(DIGITS_FLOW), config__unet=trained),
        case("--checkpoint-every", "17", config__checkpoint_every=17),
        case("--set", "weight_decay=0.5", "--set", "decay=constant", config__weight_decay=0.5,
             config__decay="constant"),
        case("--steps", "41", "--set", "steps=43", config__steps=43),
        case("--cpu", train_pixel_model__cpu=True),
    )  # fmt: skip


def training(name: str, data: DataSource, *own: Case, needed: tuple[str, ...] = ()) -> Command:
    """The command for one kind of pictures. own: cases of options that act on its source."""
    return Command(
        verb=("train", name),
        needed=needed,
        boundary=boundary,
        arrives=config(data)
        | {
            "preset.data": data,
            "preset.objective": "flow",
            "train_pixel_model.out": Path(f"runs/{name}-flow"),
            "train_pixel_model.resume": False,
            "train_pixel_model.resume_step": None,
            "train_pixel_model.cpu": False,
            "files": [],
        },
        cases=(*cases(name), *own),
    )


def of(data: DataSource) -> dict[str, Any]:
    return {"preset__data": data, "config__data": data}


OF_A_FOLDER = "nothing, because only a folder of pictures"
COMMANDS = (
    training(
        "digits",
        Digits(size=16),
        case("--size", "8", **of(Digits(size=8))),
        case("--data", "pictures", refused="nothing, because the digits come with scikit-learn"),
        case("--gray", refused=OF_A_FOLDER),
        case("--bad-pictures", "skip", refused=OF_A_FOLDER),
    ),
    training(
        "cifar10",
        Cifar10(folder="archive"),
        case("--data", "other", **of(Cifar10(folder="other"))),
        case("--size", "16", refused="32, the size of CIFAR-10's pictures"),
        case("--gray", refused=OF_A_FOLDER),
        case("--bad-pictures", "skip", refused=OF_A_FOLDER),
        needed=("--data", "archive"),
    ),
    training(
        "folder",
        ImageFolder(folder="pictures", size=32, channels=3, bad_pictures="refuse"),
        case("--data", "other", **of(ImageFolder(folder="other"))),
        case("--size", "48", **of(ImageFolder(folder="pictures", size=48))),
        case("--gray", **of(ImageFolder(folder="pictures", channels=1))),
        case("--bad-pictures", "skip", **of(ImageFolder(folder="pictures", bad_pictures="skip"))),
        needed=("--data", "pictures"),
    ),
)
