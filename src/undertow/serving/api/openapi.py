"""The description of the API: its schemas are those of the records that the service and the library use."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from undertow.engine.request import GenerationRequest
from undertow.records import Record, schema_of
from undertow.serving.admission import JobOptions
from undertow.serving.api import problems
from undertow.serving.api.bodies import JSON
from undertow.serving.api.requests import MOST_TOGETHER, JobChange
from undertow.serving.api.views import BatchView, JobList, JobView, PictureView
from undertow.serving.inspection import DiagnosisView

REFERENCE = "#/components/schemas/{model}"
GIVEN: tuple[type[Record], ...] = (JobView, JobList, BatchView, PictureView, DiagnosisView)
"""Records that clients get."""

HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
PICTURE = {
    "description": "An upload, a picture of an earlier job, or the bytes of a PNG, JPEG or WebP file.",
    "anyOf": [
        {"type": "string", "description": "The bytes in base64, or a data: URL."},
        {"type": "object", "properties": {"artifact": HASH}, "required": ["artifact"]},
        {
            "type": "object",
            "properties": {"png": {"type": "string", "contentEncoding": "base64"}},
            "required": ["png"],
        },
        {"type": "null"},
    ],
}
RULES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 100}]}
ADAPTERS = {
    "description": "Names that /v1/adapters lists, or objects with such a name as `source`, and fields of an Adapter.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
        {"type": "object"},
    ],
}


def reference(name: str) -> dict[str, str]:
    """A schema by its name."""
    return {"$ref": REFERENCE.format(model=name)}


def takes(name: str, *, required: bool = True) -> dict[str, Any]:
    """Part of a route's description: its body as JSON, by the name of a schema."""
    return {"requestBody": {"required": required, "content": {JSON: {"schema": reference(name)}}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Refused, and why.",
        "content": {problems.MEDIA_TYPE: {"schema": reference("Problem")}},
    }
}


def gives(record: type[Record] | None, *statuses: int, about: str = "Done.") -> dict[int | str, dict[str, Any]]:
    """The answers of a route: a record, or any JSON object, and problem details for everything else."""
    schema = {"type": "object"} if record is None else reference(record.__name__)
    good = {status: {"description": about, "content": {JSON: {"schema": schema}}} for status in statuses or (200,)}
    return {**good, **PROBLEMS}


@cache
def schemas() -> Mapping[str, Any]:
    """Every schema by its name."""
    taken: list[Any] = [
        (record, "validation", schema_of(record)) for record in (GenerationRequest, JobOptions, JobChange)
    ]
    given: list[Any] = [(record, "serialization", schema_of(record)) for record in GIVEN]
    _, together = TypeAdapter.json_schemas([*taken, *given], ref_template=REFERENCE)
    found = deepcopy(together["$defs"])
    drawn, options = found.pop("GenerationRequest"), found.pop("JobOptions")
    for name in ("image", "mask", "depth"):
        drawn["properties"][name] |= PICTURE
    drawn["properties"]["adapters"] = ADAPTERS
    found["JobRequest"] = {
        "type": "object",
        "title": "JobRequest",
        "description": "What to draw, as the library's GenerationRequest, and how it is treated as a job. Without a "
        "seed one is chosen, and told. Where steps or guidance_scale are left out, those count that /v1/models has as "
        "`suggested` of the model, if it has any.",
        "properties": {**drawn["properties"], **options["properties"]},
        "required": ["prompt"],
        "additionalProperties": False,
    }
    rules = {"only": {"description": "Rules of the doctor, or families of them: nan, picture, slow, memory.", **RULES}}
    found["DiagnosisOptions"] = {"type": "object", "properties": rules, "additionalProperties": False}
    found["DiagnosisRequest"] = {
        "type": "object",
        "description": "What would be drawn, as a job says it.",
        "properties": {**found["JobRequest"]["properties"], **rules},
        "required": ["prompt"],
        "additionalProperties": False,
    }
    found["BatchRequest"] = {
        "type": "object",
        "properties": {
            "jobs": {"type": "array", "items": reference("JobRequest"), "minItems": 1, "maxItems": MOST_TOGETHER}
        },
        "required": ["jobs"],
        "additionalProperties": False,
    }
    return {**found, "Problem": dict(problems.SCHEMA)}


def complete(description: dict[str, Any]) -> dict[str, Any]:
    """What the framework found out of the routes, with our schemas, and without its own of errors."""
    components = description.setdefault("components", {})
    own = {name: schema for name, schema in components.get("schemas", {}).items() if "ValidationError" not in name}
    components["schemas"] = {**own, **schemas()}
    for path in description["paths"].values():
        for operation in path.values():
            operation.get("responses", {}).pop("422", None)
    return description
