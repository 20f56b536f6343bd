"""How adapters and regions of a picture are shown, and values that a stranger put in their place."""

import pytest
from PIL import Image

from undertow import Adapter, AdapterStack, GenerationRequest, HighResolution, Region
from undertow.cli.app import main
from undertow.cli.request_rows import request_rows
from undertow.engine.report import Report
from undertow.engine.saving import save_picture

MAP = Image.new("RGB", (8, 4))
EDGES = Adapter("edges", image=MAP, mask=(MAP, MAP), end=0.6, control_mode="prompt", scale=0.8)


def rows(**fields):
    """What is shown of these fields of a request."""
    request = GenerationRequest(prompt="", **fields).to_json(files=False)
    return list(request_rows({name: request[name] for name in fields}))


def test_an_adapter_is_a_line_with_all_that_differs_from_the_defaults():
    """It was its name alone."""
    assert rows(adapters=(EDGES, Adapter("mosaic", scale=(0.25, 1.0), blocks={"*": 0.5}))) == [
        (
            "adapter edges",
            "at 0.8; end 0.6; image 8x4, stored here; mask 8x4, stored here, 8x4, stored here; control mode prompt",
        ),
        ("adapter mosaic", "at 0.25,1; blocks * 0.5"),
    ]


def test_a_stack_is_its_adapters_and_its_rule():
    """It was Python's way to write a dictionary, cut after 300 characters."""
    stack = AdapterStack((Adapter("mosaic", priority=2), EDGES), strategy="ties", off=frozenset({"edges"}))
    found = rows(adapters=stack)
    assert [name for name, _ in found] == ["adapter mosaic", "adapter edges", "stack"]
    assert (found[0][1], found[2][1]) == ("at 1; priority 2", "strategy ties; off edges")


def test_a_region_is_a_line_with_its_adapters():
    left = Region(prompt="a cat", box=(0, 0, 0.5, 1), weight=2.0, adapters=(Adapter("mosaic", scale=0.5),))
    right = Region(prompt="a dog", box=(0.5, 0, 1, 1))
    assert rows(regions=(left, right)) == [
        ("region 0,0,0.5,1", "a cat; weight 2; adapter mosaic at 0.5"),
        ("region 0.5,0,1,1", "a dog"),
    ]


def test_other_parts_are_what_is_set_in_them():
    assert rows(high_resolution=HighResolution(scale=1.5), sampler_options={"eta": 0.123456789}) == [
        ("high_resolution", "scale 1.5; strength 0.6; upscale pixels"),
        ("sampler_options", "eta 0.123456789"),
    ]


@pytest.mark.parametrize(
    "value",
    [None, 3, "edges", [], [3], [[]], {}, {"adapters": 3}, {"adapters": [{}]}, [{"source": 3, "scale": {}}],
     [{"prompt": 3, "box": 7, "adapters": [{"image": [[3]]}]}]],
)  # fmt: skip
def test_whatever_stands_there_is_shown(value):
    for name in ("adapters", "regions", "seed"):
        assert all(isinstance(word, str) for row in request_rows({name: value}) for word in row)


def test_lists_within_lists_end():
    deep = []
    for _ in range(500):
        deep = [deep]
    assert list(request_rows({"seed": deep})) == [("seed", "...")]


def test_a_picture_is_inspected_so(tmp_path, capsys):
    request = GenerationRequest(prompt="owl", adapters=(EDGES,), count=2)
    save_picture(MAP, tmp_path / "a.png", Report(request=request, model="emoji", size=(4, 8), sigmas=(), seconds={}))
    assert main(["inspect", str(tmp_path / "a.png")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "adapter edges at 0.8; end 0.6; image 8x4, stored here;" in shown
    assert "which picture 1 of 2" in shown
