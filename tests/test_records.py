"""What JSON's schema says of a request, and that every field says what it is."""

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from undertow import Adapter, AdapterStack, GenerationRequest, HighResolution, InvalidInput, Region, Views
from undertow.engine.metadata import Description
from undertow.engine.request import GROUPS
from undertow.records import Record, defaults, descriptions, meaning, schema_of

RECORDS = (GenerationRequest, Adapter, AdapterStack, Region, HighResolution, Views, Description)


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_says_what_it_is(record: type[Record]):
    said = descriptions(record)
    assert list(said) == [field.name for field in fields(record)]
    for name, text in said.items():
        assert text[0].isupper(), name
        assert text.endswith("."), name
        assert meaning(record, name)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_without_anything_is_its_defaults(record: type[Record]):
    """The signature that Python shows, and the defaults that JSON and the command line take, are the same."""
    signature = inspect.signature(record)
    required = {name for name, one in signature.parameters.items() if one.default is inspect.Parameter.empty}
    assert required == signature.parameters.keys() - defaults(record).keys()
    schema = TypeAdapter(record).json_schema()
    assert set(schema.get("required", ())) == required


def test_the_schema_of_a_request_says_types_bounds_and_choices():
    schema = TypeAdapter(GenerationRequest).json_schema()
    fields = schema["properties"]
    assert fields["steps"] == {
        "default": 20,
        "description": "Number of sampling steps.",
        "minimum": 1,
        "title": "Steps",
        "type": "integer",
    }
    assert (fields["strength"]["minimum"], fields["strength"]["maximum"]) == (0, 1)
    assert fields["seamless"]["enum"] == ["none", "x", "y", "both"]
    assert fields["size"]["anyOf"][0]["minItems"] == fields["size"]["anyOf"][0]["maxItems"] == 2
    assert fields["high_resolution"]["anyOf"][0] == {"$ref": "#/$defs/HighResolution"}
    assert fields["adapters"]["anyOf"] == [
        {"items": {"$ref": "#/$defs/Adapter"}, "type": "array"},
        {"$ref": "#/$defs/AdapterStack"},
    ]
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]) == {"Adapter", "AdapterStack", "HighResolution", "Region", "StepForecast", "Views"}


def test_the_schema_knows_what_a_picture_may_be():
    fields = TypeAdapter(GenerationRequest).json_schema()["properties"]
    path, file, png, null = fields["image"]["anyOf"]
    assert (path["type"], null["type"]) == ("string", "null")
    assert (file["required"], png["required"]) == (["file"], ["png"])
    assert png["properties"]["png"]["contentMediaType"] == "image/png"
    several, *one = TypeAdapter(Adapter).json_schema()["properties"]["image"]["anyOf"]
    assert one == fields["image"]["anyOf"]
    assert several == {"type": "array", "items": {"anyOf": [path, file, png]}}


def test_the_groups_begin_at_fields_in_their_order():
    names = [field.name for field in fields(GenerationRequest)]
    assert [name for name in names if name in GROUPS] == list(GROUPS)
    assert names[0] == next(iter(GROUPS))


@pytest.mark.parametrize(
    "given",
    [
        {"steps": True},
        {"guidance_scale": False},
        {"seed": True},
        {"size": [64, True]},
        {"high_resolution": {"scale": True}},
    ],
)
@pytest.mark.parametrize("door", [lambda fields: GenerationRequest(**fields), GenerationRequest.from_json])
def test_a_boolean_is_no_number(given: dict, door):
    """Python takes True for 1, and JSON's `"steps": true` is a mistake of its writer."""
    with pytest.raises(InvalidInput, match=r"(True|False), expected a number, which a boolean is not"):
        door({"prompt": "a", **given})


def test_an_empty_prompt_is_a_prompt():
    """What the unconditional half of guidance is drawn of."""
    assert GenerationRequest.from_json({"prompt": ""}) == GenerationRequest(prompt="")


class Slow:
    """A part of a field's annotation of which pydantic makes nothing for a while. most: that were made at once."""

    now = most = 0

    def __get_pydantic_core_schema__(self, source, handler):
        Slow.now += 1
        Slow.most = max(Slow.most, Slow.now)
        time.sleep(0.05)
        Slow.now -= 1
        return handler(source)


@dataclass(frozen=True, kw_only=True)
class One(Record):
    number: Annotated[int, Slow()]


@dataclass(frozen=True, kw_only=True)
class Other(Record):
    number: Annotated[int, Slow()]


def test_threads_make_schemas_one_after_the_other():
    """Sources of records are parsed meanwhile, which some versions of Python cannot do in two threads."""
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(schema_of, (One, Other, One, Other)))
    assert found[0] is found[2]
    assert Slow.most == 1
