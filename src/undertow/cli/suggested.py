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
    return _all_with_suggested([(request, given)], service, notes)[0]


def requests_of(tasks: "Sequence[Task]", service: "UNetService", notes: Notes) -> list[GenerationRequest]:
    """What is drawn by the tasks; what the model suggests to any of them is noted once. Errors: `InvalidInput`."""
    return _all_with_suggested([(one.request, one.given) for one in tasks], service, notes)


def distilled_words(fields: Mapping[str, float]) -> str:
    """What is said of a model that suggests these fields; empty where it suggests none."""
    said = " ".join(f"--{option} {fields[field]:g}" for option, field in FIELDS.items() if field in fields)
    return f"distilled to few steps: drawn with {said}" if said else ""


def note_suggested(fields: Mapping[str, float], service: "UNetService", notes: Notes, where: str = "") -> None:
    """Notes what is drawn as the model suggests. where: it is, in words."""
    if said := distilled_words(fields):
        notes.add(f"{service.model.path.name} was {said}{where}")


def _all_with_suggested(
    asked: Sequence[tuple[GenerationRequest, Collection[str]]], service: "UNetService", notes: Notes
) -> list[GenerationRequest]:
    """asked: requests, each with the fields that were typed."""
    from undertow.checkpoints.identify.few_steps import left_to_model

    left: list[dict[str, Any]] = [left_to_model(service.model.suggested, given) for _, given in asked]
    together = {name: value for fields in left for name, value in fields.items()}
    alike = all(fields.keys() == together.keys() for fields in left)
    note_suggested(together, service, notes, "" if alike else " where nothing else is given")
    return [replace(request, **fields) for (request, _), fields in zip(asked, left, strict=True)]
