"""The model that a verb works on, named the same way by all of them."""

from typing import Annotated

import typer

from undertow.cli.config_file import config_file
from undertow.embedded import embedded_models

DEFAULT_MODEL = "emoji"
MODEL_HELP = "A .safetensors or .gguf file, a pipeline folder, a Hub id, or a name that `undertow models` lists."


def complete_model(beginning: str) -> list[str]:
    """The embedded models that begin so, for the shell."""
    return [name for name in embedded_models() if name.startswith(beginning)]


def default_model() -> str:
    """The model where none is named: that of `undertow.toml`, else the embedded one."""
    if config_file() is None:
        return DEFAULT_MODEL
    from undertow.cli.config import read_config  # its records need pydantic, which is slow to import

    configured = read_config().model
    return DEFAULT_MODEL if configured is None else configured


def find_model(name: str | None) -> str | None:
    """The place of a model that `undertow.toml` names so."""
    if name is None or config_file() is None:
        return name
    from undertow.cli.config import read_config  # its records need pydantic, which is slow to import

    return read_config().find(name)


Model = Annotated[
    str, typer.Option("--model", "-m", help=MODEL_HELP, autocompletion=complete_model, callback=find_model)
]
