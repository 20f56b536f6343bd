"""Steps and guidance scale that were not typed, of models that are best drawn with others than the defaults."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from undertow.cli.notes import Notes
from undertow.engine.request import GenerationRequest

if TYPE_CHECKING:
    from undertow.cli.task import Task
    from undertow.service import UNetService

FIELDS: Mapping[str, str] = {"steps": "steps", "sigmas": "sigmas", "guidance": "guidance_scale"}
"""By the name of an option, the field that it gives; sigmas take the place of steps."""


def given_fields(typed: Collection[str]) -> frozenset[str]:
    """Fields that a model then suggests nothing for. typed: names of options."""
    return frozenset(field for option, field in FIELDS.items() if option in typed)


def with_suggested(
    request: GenerationRequest, service: "UNetService", given: Collection[str], notes: Notes
) -> GenerationRequest:
    """The request with what its model suggests in place of the defaults, which is noted. given: fields that were
    typed."""
    from undertow.checkpoints.identify.few_steps import left_to_model

    fields: dict[str, Any] = left_to_model(service.model.suggested, given)
    if not fields:
        return request
    said = " ".join(f"--{option} {fields[field]:g}" for option, field in FIELDS.items() if field in fields)
    notes.add(f"{service.model.path.name} was distilled to few steps: drawn with {said}")
    return replace(request, **fields)


def requests_of(tasks: "Sequence[Task]", service: "UNetService", notes: Notes) -> list[GenerationRequest]:
    """What is drawn by the tasks. Errors: `InvalidInput`."""
    return [with_suggested(one.request, service, one.given, notes) for one in tasks]
