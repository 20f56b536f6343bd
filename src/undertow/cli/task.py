"""What `undertow generate` is asked for: a new request, or that of a picture, with what was typed in its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from undertow.cli.config import read_config
from undertow.cli.model_option import DEFAULT_MODEL
from undertow.cli.request_options import changes, with_parts
from undertow.cli.seeds import parse_seed, random_seed
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput

EXAMPLE = "red apple on white background"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A request, which of its pictures are written, and the model that draws them."""

    request: GenerationRequest
    indices: Sequence[int]
    model: str = DEFAULT_MODEL


def new_task(prompt: str | None, options: Mapping[str, Any]) -> Task:
    """Errors: `InvalidInput`."""
    if prompt is None:
        remedy = f'for example undertow generate "{EXAMPLE}", or repeat a picture with --from'
        raise InvalidInput("prompt", None, "a text, which may be empty", remedy)
    rows: dict[str, Any] = {"seed": random_seed()} | _rows(options)
    request = with_parts(GenerationRequest(prompt=prompt, **changes(options), **rows), options)
    configured = read_config().model
    model = DEFAULT_MODEL if configured is None else configured
    return Task(request=request, indices=range(request.count), model=model)


def repeated_task(picture: Path, options: Mapping[str, Any], console: Console) -> Task:
    """The request that a picture was drawn by, but for what is given now.

    All pictures of that request are drawn again, as their number may decide the last bits, and the one is written. With
    another seed or number they are other pictures: one, or as many as are asked for, from this one's seed. Errors:
    `InvalidInput`.
    """
    from undertow.engine.metadata import read_png

    prompt = {"prompt": options["prompt"]} if "prompt" in options else {}
    stored = read_png(picture, changes(options) | prompt)
    if options:
        names = ", ".join(name.replace("_", " ") for name in options)
        console.print("note: given now, in place of what is stored:", names, highlight=False, soft_wrap=True)
    request, index = with_parts(stored.request, options), stored.index
    typed = _rows(options)
    if not typed:
        return Task(request=request, indices=[index], model=stored.model)
    variation = request.variation_seed
    if variation is not None and "variation" not in options:
        variation += index
    rows: dict[str, Any] = {"seed": request.seed + index, "count": 1} | typed
    request = replace(request, **rows, variation_seed=variation)
    return Task(request=request, indices=range(request.count), model=stored.model)


def _rows(options: Mapping[str, Any]) -> dict[str, Any]:
    """Seed and number of pictures, of those that were typed. Errors: `InvalidInput`."""
    found = {"count": options["count"]} if "count" in options else {}
    return found | ({"seed": parse_seed(options["seed"])} if "seed" in options else {})
