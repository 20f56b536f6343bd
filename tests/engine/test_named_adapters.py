"""What becomes of a picture's adapters beside those that are named now."""

import json

import pytest
from PIL import Image

from undertow import Adapter, AdapterStack, GenerationRequest
from undertow.cli.option_values import named_adapters
from undertow.engine.metadata import JSON_KEY, read_stored
from undertow.engine.named_adapters import with_named
from undertow.errors import InvalidInput

BUNDLED = ("edges", "mosaic", "references")
MAP = Image.new("RGB", (8, 8), "red")
MOSAIC = Adapter("mosaic", scale=0.7, end=0.5)
EDGES = Adapter("edges", scale=0.9, image=MAP, end=0.6, control_mode="prompt")


def repeated(drawn, /, **typed):
    """The adapters of a picture that is drawn again with options, and what was dropped."""
    request = GenerationRequest(prompt="", adapters=drawn).to_json(files=False)
    merged = with_named(request, named_adapters(typed), BUNDLED)
    content = json.dumps({"request": request, "index": 0, "model": "emoji"})
    found = read_stored("a.png", {JSON_KEY: content}).description({"adapters": merged.value}, BUNDLED)
    return found.request.adapters, list(merged.dropped)


@pytest.mark.parametrize(
    ("typed", "expected", "dropped"),
    [
        ({"loras": ["mosaic@0.3"]}, (Adapter("mosaic", scale=0.3, end=0.5), EDGES), []),
        ({"loras": ["mosaic@1"]}, (Adapter("mosaic", end=0.5), EDGES), []),
        ({"loras": ["mosaic"]}, (MOSAIC, EDGES), []),
        (
            {"loras": ["mosaic"], "lora_blocks": ["*=0.5"]},
            (Adapter("mosaic", scale=0.7, end=0.5, blocks={"*": 0.5}), EDGES),
            [],
        ),
        ({"loras": ["drawn/mosaic.safetensors"]},
         (Adapter("drawn/mosaic.safetensors", scale=0.7, end=0.5), EDGES), []),
        ({"loras": ["other"]}, (EDGES, Adapter("other")), ["mosaic"]),
        (
            {"adapters": ["edges@0.3"]},
            (MOSAIC, Adapter("edges", scale=0.3, image=MAP, end=0.6, control_mode="prompt")),
            [],
        ),
        ({"adapters": ["edges"]}, (MOSAIC, EDGES), []),
        (
            {"adapters": ["edges=other.png"]},
            (MOSAIC, Adapter("edges", scale=0.9, image=("other.png",), end=0.6, control_mode="prompt")),
            [],
        ),
        ({"adapters": ["references=a.png"]}, (MOSAIC, EDGES, Adapter("references", image=("a.png",))), []),
        (
            {"loras": ["other@0.5"], "adapters": ["edges@0.3"]},
            (Adapter("edges", scale=0.3, image=MAP, end=0.6, control_mode="prompt"), Adapter("other", scale=0.5)),
            ["mosaic"],
        ),
    ],
)  # fmt: skip
def test_only_what_is_typed_changes_and_only_loras_are_listed_anew(typed, expected, dropped):
    """One adapter that was typed dropped all others, and with its scale alone lost its control map."""
    assert repeated((MOSAIC, EDGES), **typed) == (expected, dropped)


def test_a_control_that_is_not_here_gives_way_to_another_one():
    canny = Adapter("canny.safetensors", image=MAP)
    own = Adapter("own.safetensors", image=("map.png",))
    assert repeated((MOSAIC, canny), adapters=["own.safetensors=map.png"]) == ((MOSAIC, own), ["canny.safetensors"])
    with pytest.raises(InvalidInput, match=r"adapter 'canny.safetensors' at 1"):
        repeated((MOSAIC, canny), loras=["mosaic@0.3"])


def test_a_stack_keeps_its_rule():
    stack = AdapterStack((MOSAIC, EDGES, Adapter("references", image=MAP)), strategy="ties", off=frozenset({"mosaic"}))
    found, dropped = repeated(stack, loras=["mosaic@0.3"])
    assert (found.strategy, found.off, dropped) == ("ties", {"mosaic"}, [])
    assert found.adapters[0] == Adapter("mosaic", scale=0.3, end=0.5)
    found, dropped = repeated(stack, loras=["other"])
    assert (found.strategy, found.off, dropped) == ("ties", frozenset(), ["mosaic"])


def test_a_stored_adapter_opens_no_picture_for_the_one_that_names_it(tmp_path):
    MAP.save(tmp_path / "secret.png")
    stored = {"adapters": [{"source": "edges", "image": str(tmp_path / "secret.png")}]}
    content = json.dumps({"request": {"prompt": "", **stored}, "index": 0, "model": "emoji"})
    merged = with_named(stored, named_adapters({"adapters": ["edges@0.3"]}), BUNDLED)
    with pytest.raises(InvalidInput, match=r"give image of edges 'secret.png' \(--adapter NAME=PICTURE\)"):
        read_stored("a.png", {JSON_KEY: content}).description({"adapters": merged.value}, BUNDLED)
