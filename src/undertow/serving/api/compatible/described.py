"""What the OpenAPI description says of the APIs of others: bodies as the records have them, and answers in words."""

from typing import Any

from undertow.records import Record, schema_of
from undertow.serving.api.bodies import JSON

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Done.", "content": {JSON: {"schema": {}}}},
    "default": {"description": "Refused, and why.", "content": {JSON: {"schema": {"type": "object"}}}},
}


def takes(record: type[Record]) -> dict[str, Any]:
    """Part of a route's description: its body is a record as JSON."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": inlined(record)}}}}


def takes_object(about: str) -> dict[str, Any]:
    """The same for an object whose fields are not known before."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object", "description": about}}}}}


def inlined(record: type[Record]) -> dict[str, Any]:
    """The schema of a record, with those of its parts inside."""
    schema = schema_of(record).json_schema()
    parts = schema.pop("$defs", {})

    def put(found: Any) -> Any:
        if isinstance(found, dict):
            name = str(found.get("$ref", "")).removeprefix("#/$defs/")
            return put(parts[name]) if name in parts else {key: put(value) for key, value in found.items()}
        return [put(one) for one in found] if isinstance(found, list) else found

    return put(schema)
