"""Where what was measured or computed on this machine is kept."""

from pathlib import Path

import pytest

from undertow.cache_folder import cache_folder, read_cached, write_cached


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"UNDERTOW_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, Path("/a/b")),
        ({"UNDERTOW_CACHE": "", "XDG_CACHE_HOME": "/c"}, Path("/c/undertow")),
        ({"XDG_CACHE_HOME": "/c"}, Path("/c/undertow")),
        ({"HOME": "/home/someone"}, Path("/home/someone/.cache/undertow")),
    ],
)
def test_the_environment_names_the_folder(variables, place, monkeypatch):
    """The last two: the XDG Base Directory Specification's $XDG_CACHE_HOME, and its default."""
    for name in ("UNDERTOW_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == place


def test_what_is_written_is_read_and_what_is_damaged_is_nothing(tmp_path):
    place = tmp_path / "new" / "a.json"
    assert read_cached(place) == {}
    write_cached({"a": [1]}, place)
    assert read_cached(place) == {"a": [1]}
    for text in ("[1]", "no JSON", "[" * 100_000):
        place.write_text(text)
        assert read_cached(place) == {}
    assert [file.name for file in place.parent.iterdir()] == ["a.json"], "no draft stays"


def test_a_place_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_cached({}, tmp_path / "a.json")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
