"""The model that a verb works on, named the same way by all of them."""

from typing import Annotated

import typer

from undertow.embedded import embedded_models

DEFAULT_MODEL = "emoji"
MODEL_HELP = "A .safetensors file, a pipeline folder, a Hub id or an embedded model."


def complete_model(beginning: str) -> list[str]:
    """The embedded models that begin so, for the shell."""
    return [name for name in embedded_models() if name.startswith(beginning)]


Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP, autocompletion=complete_model)]
