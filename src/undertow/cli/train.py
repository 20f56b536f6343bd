"""`undertow train`: what can be trained, a command each."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import get_args

import typer

from undertow.cli.train_controlnet import train_controlnet
from undertow.cli.train_distill import train_distill
from undertow.cli.train_image_prompt import train_image_prompt
from undertow.cli.train_lora import train_lora
from undertow.cli.train_metrics import train_metrics
from undertow.cli.train_pixels import DataName, train_pixels

HELP = {
    "digits": "Train a class-conditional pixel model on scikit-learn's handwritten digits.",
    "cifar10": "Train a class-conditional pixel model on CIFAR-10, whose archives lie in --data.",
    "folder": "Train a class-conditional pixel model on the pictures in --data, a folder for each class.",
}


def _on(data_set: DataName) -> Callable[..., None]:
    """`train_pixels` for one data set, with the signature that typer shows."""

    @wraps(train_pixels)
    def command(**options: object) -> None:
        train_pixels(data_set, **options)  # pyright: ignore[reportArgumentType]  typer has checked their types

    parameters = list(inspect.signature(train_pixels).parameters.values())[1:]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return command


train = typer.Typer(help="Train a model, and see how that stands.", no_args_is_help=True)
for _name in get_args(DataName):
    train.command(_name, help=HELP[_name])(_on(_name))
train.command("lora")(train_lora)
train.command("controlnet")(train_controlnet)
train.command("image-prompt")(train_image_prompt)
train.command("metrics")(train_metrics)
train.command("distill")(train_distill)
