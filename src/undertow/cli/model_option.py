"""The model that a verb works on, named the same way by all of them."""

from typing import Annotated

import typer

DEFAULT_MODEL = "emoji"
MODEL_HELP = "A .safetensors file, a pipeline folder, a Hub id or an embedded model."

Model = Annotated[str, typer.Option(help=MODEL_HELP)]
