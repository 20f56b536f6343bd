# pyright: reportCallIssue=true, reportArgumentType=true, reportUnnecessaryTypeIgnoreComment=true
"""The keyword parameters of `generate` and `load` are the fields and parameters that they stand for.

`make check` runs pyright over this file: should `step=` ever be accepted, the ignored error below is an error itself.
"""

import inspect
from pathlib import Path
from typing import Unpack, get_type_hints

import pytest

import undertow
from tests.services import service_of
from undertow import Adapter, AdapterStack, GenerationRequest, InvalidInput, Region, UNetService
from undertow.checkpoints.read.model_loading import load_model
from undertow.engine.settings import RequestSettings

ONLY_OF_LOAD_MODEL = {"channels_last", "quantization", "validate"}
"""Which `load` decides by itself."""


def test_the_settings_are_the_fields_of_the_record():
    fields = get_type_hints(GenerationRequest)
    own = {name: fields[name] for name in GenerationRequest.__dataclass_fields__ if name != "prompt"}
    taken = get_type_hints(RequestSettings)
    liberties = {name for name in own if taken[name] != own[name]}
    assert liberties == {"size", "regions", "adapters"}
    assert {name: taken[name] for name in own if name not in liberties} == {
        name: own[name] for name in own if name not in liberties
    }
    assert list(get_type_hints(RequestSettings)) == list(own)
    assert not RequestSettings.__required_keys__, "what is left out is the record's default"


def test_generate_takes_the_settings():
    parameters = inspect.signature(UNetService.generate).parameters
    assert parameters["settings"].annotation == Unpack[RequestSettings]
    assert not parameters.keys() & get_type_hints(RequestSettings).keys()


def test_load_passes_on_what_load_model_takes():
    ours, theirs = (inspect.signature(one).parameters for one in (undertow.load, load_model))
    assert theirs.keys() - ours.keys() == ONLY_OF_LOAD_MODEL
    shared = theirs.keys() & ours.keys() - {"source"}
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}
    assert {name: ours[name].annotation for name in shared} == {name: theirs[name].annotation for name in shared}
    assert not [one for one in ours.values() if one.kind is inspect.Parameter.VAR_KEYWORD]


def test_what_is_misspelled_is_refused_with_the_nearest_name():
    with pytest.raises(InvalidInput, match="step is 3, expected a field of GenerationRequest; did you mean 'steps'"):
        service_of("sd1").generate("a", step=3)  # pyright: ignore[reportCallIssue]


def test_what_everybody_understands_is_taken():
    """A number for a square, an adapter or its name for several, one region for several."""
    mosaic, region = Adapter("mosaic"), Region(prompt="b", box=(0, 0, 1, 1))
    asked = GenerationRequest(prompt="a", size=(64, 64), adapters=(mosaic,), regions=(region,))
    for adapters in (mosaic, "mosaic", ("mosaic",), [mosaic], Path("mosaic")):
        settings = {"prompt": "a", "size": 64, "adapters": adapters, "regions": region}
        found = GenerationRequest.from_json(settings)
        assert (found.size, [one.title for one in found.adapters], found.regions) == ((64, 64), ["mosaic"], (region,))
        assert GenerationRequest(**settings) == found
    assert GenerationRequest.from_json({"prompt": "a", "size": 64, "adapters": "mosaic", "regions": region}) == asked
    assert Region(prompt="b", box=(0, 0, 1, 1), adapters="mosaic").adapters == (mosaic,)  # pyright: ignore[reportArgumentType]
    assert AdapterStack("mosaic").names == ("mosaic",)  # pyright: ignore[reportArgumentType]


def test_lists_are_taken_for_tuples():
    drawn = service_of("sd1").generate("a", steps=1, size=[32, 32], adapters=[])  # pyright: ignore[reportArgumentType]
    assert (drawn.report.request.size, drawn.report.request.adapters) == ((32, 32), ())


def misspelled(service: UNetService) -> None:
    """Read by pyright alone."""
    service.generate("a", steps=3, seed=1, size=(64, 64))
    service.generate("a", steps="3")  # pyright: ignore[reportArgumentType]
    undertow.load("emoji", prediction="v")
    undertow.load("emoji", predictions="v")  # pyright: ignore[reportCallIssue]
