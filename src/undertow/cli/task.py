"""What `undertow generate` is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from undertow.cli.model_option import default_model
from undertow.cli.request_options import request_of
from undertow.cli.seeds import parse_seed, random_seed
from undertow.cli.suggested import FIELDS, given_fields
from undertow.engine.computing import Computing
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput

EXAMPLE = "red apple on white background"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A request, which of its pictures are written, and the model that draws them. model_hash: of the one that drew
    them before. given: fields for which the model's suggestions do not count. computing: how the model that
    drew them before was loaded."""

    request: GenerationRequest
    indices: Sequence[int]
    model: str = field(default_factory=default_model)
    model_hash: str | None = None
    given: frozenset[str] = frozenset(FIELDS.values())
    computing: Computing | None = None


def new_task(prompt: str | None, options: Mapping[str, Any]) -> Task:
    """Errors: `InvalidInput`."""
    if prompt is None:
        remedy = f'for example undertow generate "{EXAMPLE}" (behind -- if it begins with -), or --from PICTURE'
        raise InvalidInput("prompt", "missing", "a text, which may be empty", remedy)
    rows: dict[str, Any] = {"seed": random_seed()} | typed_rows(options)
    request = request_of(prompt, options, **rows)
    return Task(request=request, indices=range(request.count), given=given_fields(options))


def typed_rows(options: Mapping[str, Any]) -> dict[str, Any]:
    """Seed and number of pictures, of those that were typed. Errors: `InvalidInput`."""
    found = {"count": options["count"]} if "count" in options else {}
    return found | ({"seed": parse_seed(options["seed"])} if "seed" in options else {})
