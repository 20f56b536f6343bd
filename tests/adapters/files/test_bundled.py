"""Adapters that came with a model, by their names."""

from pathlib import Path

import pytest

from undertow.adapters.files.bundled import BundledAdapters
from undertow.errors import UnknownCheckpoint


@pytest.fixture
def own(tmp_path: Path) -> BundledAdapters:
    folder = tmp_path / "adapters"
    (folder / "edges").mkdir(parents=True)
    for name in ("v1.5.safetensors", "mosaic.safetensors", "mosaic.md"):
        (folder / name).touch()
    return BundledAdapters(tmp_path)


def test_names_are_of_folders_and_files(own: BundledAdapters):
    assert own.names() == ("edges", "mosaic", "v1.5")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("edges", "edges"),
        ("mosaic", "mosaic.safetensors"),
        ("mosaic.safetensors", "mosaic.safetensors"),
        ("v1.5", "v1.5.safetensors"),
    ],
)
def test_a_name_finds_its_adapter(own: BundledAdapters, tmp_path: Path, name: str, place: str):
    assert own.locate(name) == tmp_path / "adapters" / place


def test_what_exists_comes_before_what_the_model_has(
    own: BundledAdapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path / "adapters")
    assert own.locate("edges") == "edges"


def test_an_id_of_the_hub_is_left_as_it_is(own: BundledAdapters):
    assert own.locate("somebody/edges") == "somebody/edges"


def test_a_word_that_is_none_of_them_is_refused_with_those_there_are(own: BundledAdapters):
    with pytest.raises(
        UnknownCheckpoint,
        match=r"mosaics: .* no adapter of that name .*did you mean 'mosaic'\? its own: edges, mosaic, v1.5",
    ):
        own.locate("mosaics")


def test_a_model_without_any_leaves_every_source_as_it_is(tmp_path: Path):
    assert BundledAdapters(None).locate("edges") == "edges"
    assert BundledAdapters(tmp_path).locate("edges") == "edges"
