"""Files whose names contain the marks of an option: an existing file goes before splitting."""

import pytest

from undertow import Adapter, InvalidInput
from undertow.cli.named_places import split_list
from undertow.cli.option_values import parse_adapters, parse_loras

FILES = ("map.png", "map, v2.png", "a=b.safetensors", "a", "style@0.5", "left=1,2.png", "x,y", "e@1=2.safetensors")


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=map, v2.png", Adapter("a", image=("map, v2.png",))),
        ("a=map, v2.png,map.png", Adapter("a", image=("map, v2.png", "map.png"))),
        ("a@0.7=map.png,map, v2.png", Adapter("a", scale=0.7, image=("map.png", "map, v2.png"))),
        ("a=left=1,2.png", Adapter("a", image=("left=1,2.png",))),
        ("a=b.safetensors", Adapter("a=b.safetensors")),
        ("a=b.safetensors@0.5", Adapter("a=b.safetensors", scale=0.5)),
        ("a=b.safetensors=map.png", Adapter("a=b.safetensors", image=("map.png",))),
        ("e@1=2.safetensors=map.png", Adapter("e@1=2.safetensors", image=("map.png",))),
        # Adapters that came with the model are no files; neither are those on the Hub.
        ("edges=map, v2.png", Adapter("edges", image=("map, v2.png",))),
        ("edges@0.5,1=map.png", Adapter("edges", scale=(0.5, 1.0), image=("map.png",))),
        ("owner/name@main=left=1,2.png", Adapter("owner/name@main", image=("left=1,2.png",))),
        # What is not there is cut as before, for the message about it.
        ("edges=one.png,two.png", Adapter("edges", image=("one.png", "two.png"))),
        ("edges=", Adapter("edges", image=("",))),
    ],
)
def test_an_adapter_and_its_pictures_are_those_that_exist(text, expected):
    assert parse_adapters([text], None) == (expected,)


def test_masks_belong_to_names_that_may_have_marks_too():
    (adapter,) = parse_adapters(["a=b.safetensors=map.png"], ["a=b=map, v2.png,x,y"])
    assert adapter.mask == ("map, v2.png", "x,y")
    with pytest.raises(InvalidInput, match="names that --adapter gives: a=b"):
        parse_adapters(["a=b.safetensors"], ["other=map.png"])
    with pytest.raises(InvalidInput, match="NAME=PICTURE"):
        parse_adapters(["a=b.safetensors"], ["a=b"])


def test_a_lora_with_an_at_sign_in_its_name_is_itself():
    assert parse_loras(["style@0.5"], {}) == (Adapter("style@0.5"),)
    assert parse_loras(["style@0.5@0.25,1"], {}) == (Adapter("style@0.5", scale=(0.25, 1.0)),)
    assert parse_loras(["other@0.5"], {}) == (Adapter("other", scale=0.5),)


def test_the_longest_name_that_exists_is_taken():
    assert split_list("x,y,map, v2.png,,z") == ("x,y", "map, v2.png", "", "z")
    assert split_list("n" * 5000 + ",b") == ("n" * 5000, "b")
