"""Numbers and booleans that are sent as text: refused by name in every JSON of ours, taken where clients need it."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest

from tests.serving.api.stand_in import DRAWN, Api
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.records import Record, annotations, defaults
from undertow.serving.admission import JobOptions
from undertow.serving.api.compatible.a1111.control import Unit
from undertow.serving.api.compatible.a1111.words import ImageToImage, TextToImage
from undertow.serving.api.compatible.agents_tools import Draw
from undertow.serving.api.compatible.huggingface import TaskParameters
from undertow.serving.api.compatible.openai_words import ImageEdit, ImageGeneration, Lora
from undertow.serving.api.compatible.texts import kinds_of, without_texts
from undertow.serving.api.requests import JobChange
from undertow.serving.inspection import InspectOptions, MapOptions

PLAIN = ({int}, {float}, {bool}, {int, float})


def texts(record: type[Record]) -> dict[str, tuple[str, Any]]:
    """By field that holds a number or a boolean, a value as text and as what it is."""
    found = {}
    for name, annotation in annotations(record).items():
        kinds = kinds_of(annotation)
        if kinds in PLAIN and not _is_list(annotation):
            found[name] = ("true", True) if kinds == {bool} else ("1", 1)
    return found


def _is_list(annotation: Any) -> bool:
    inside = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return any(get_origin(one) in (tuple, dict, frozenset) for one in inside)


@pytest.mark.parametrize("record", [GenerationRequest, JobOptions], ids=lambda record: record.__name__)
def test_the_native_api_refuses_text_for_a_number_by_its_field(api: Api, record):
    fields = texts(record)
    assert len(fields) > 2
    for name, (text, _) in fields.items():
        answer = api.client.post("/v1/jobs", json={**DRAWN, name: text})
        assert answer.status_code == 422, name
        assert answer.json()["detail"].startswith(f"{name} is '{text}', expected"), answer.text


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("size", ["64", 64]),
        ("adapters.0.scale", [{"source": "mosaic", "scale": "0.5"}]),
        ("inspect.activations", {"activations": "yes"}),
        ("high_resolution.scale", {"scale": "2"}),
    ],
)
def test_inside_of_a_field_too(api: Api, path, given):
    problem = api.client.post("/v1/jobs", json={**DRAWN, path.partition(".")[0]: given})
    assert problem.status_code == 422
    assert problem.json()["detail"].startswith(f"{path}"), problem.text


def test_openai_and_hugging_face_refuse_it_in_their_own_form(api: Api):
    for name, (text, _) in texts(ImageGeneration).items():
        answer = api.client.post("/v1/images/generations", json={"prompt": "owl", name: text})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(f"{name} is '{text}', expected"), answer.text
    for name, (text, _) in texts(TaskParameters).items():
        answer = api.client.post("/models/emoji", json={"inputs": "owl", "parameters": {name: text}})
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(f"parameters.{name} is '{text}', expected"), answer.text


@pytest.mark.parametrize("record", [Draw, JobChange, InspectOptions, MapOptions, Lora], ids=lambda one: one.__name__)
def test_so_does_every_other_record_of_the_apis(record):
    must = {name: "x" for name in ("prompt", "name") if name in annotations(record)}
    for name, (text, _) in texts(record).items():
        with pytest.raises(InvalidInput, match=rf"{name} is '{text}', expected"):
            record.from_json({**must, name: text})


@pytest.mark.parametrize("record", [TextToImage, ImageToImage, Unit, ImageEdit], ids=lambda record: record.__name__)
def test_a1111_and_forms_take_it(record):
    fields = texts(record)
    must = {"prompt": "owl", "init_images": ("x",), "model": "edges"}
    must = {name: value for name, value in must.items() if name not in defaults(record) and name in annotations(record)}
    assert len(fields) > 3
    as_text = record.from_json(without_texts(record, {**must, **{name: text for name, (text, _) in fields.items()}}))
    assert as_text == record.from_json({**must, **{name: value for name, (_, value) in fields.items()}})


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"steps": " 20 ", "cfg_scale": "7.5", "tiling": "True", "send_images": 0}, (20, 7.5, True, False)),
        ({"steps": 20.0, "cfg_scale": "1e1", "tiling": 1, "send_images": "0"}, (20, 10.0, True, False)),
    ],
)
def test_what_clients_of_a1111_send(given, read):
    found = TextToImage.read(given)
    assert (found.steps, found.cfg_scale, found.tiling, found.send_images) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "7.5"), ("steps", "many"), ("steps", ""), ("cfg_scale", "nan"), ("tiling", "maybe"), ("tiling", 2)],
)
def test_text_that_is_no_such_value_is_refused_by_name(name, value):
    with pytest.raises(InvalidInput, match=f"^{name} is "):
        TextToImage.read({name: value})


def test_a_setting_as_text(api: Api):
    assert api.client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": "2"}).status_code == 200
    assert api.client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2
