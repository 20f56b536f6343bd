"""A picture says that a refiner drew its last steps, and does not open it."""

import shutil

import pytest

from tests.services import pipeline_folder
from undertow.cli import main
from undertow.engine.metadata import read_stored


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a base, a refiner and two pictures: both.png by the two, alone.png by the first."""
    folder = tmp_path_factory.mktemp("refined")
    for name in ("base", "last"):
        shutil.copytree(pipeline_folder("sd1"), folder / name)
    for name, refiner in (("both", ["--refiner", str(folder / "last")]), ("alone", [])):
        line = ["generate", "a", "--model", str(folder / "base"), *refiner, "--steps", "4", "--no-show"]
        assert main([*line, "--refiner-switch", "0.5", "--out", str(folder / f"{name}.png")]) == 0
    return folder


def test_the_description_names_it_with_its_hash(drawn):
    stored = read_stored(drawn / "both.png")
    assert (stored.refiner, stored.refiner_hash) == ("last", stored.model_hash)
    assert len(stored.refiner_hash or "") == 10
    assert read_stored(drawn / "alone.png").refiner is None


def test_inspect_lists_it_and_asks_for_it(drawn, capsys):
    assert main(["inspect", str(drawn / "both.png")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"refiner last (hash {read_stored(drawn / 'both.png').refiner_hash})" in said
    assert "--model FILE --refiner FILE" in said


def test_drawing_again_without_it_is_told_and_with_it_gives_the_same(drawn, tmp_path, capsys):
    line = ["generate", "--from", str(drawn / "both.png"), "--model", str(drawn / "base"), "--no-show", "--out"]
    assert main([*line, str(tmp_path / "without.png")]) == 0
    assert "note: drawn without the refiner 'last' (hash" in capsys.readouterr().err
    assert main([*line, str(tmp_path / "with.png"), "--refiner", str(drawn / "last")]) == 0
    assert "refiner" not in capsys.readouterr().err
    assert (tmp_path / "with.png").read_bytes() == (drawn / "both.png").read_bytes()
    assert read_stored(tmp_path / "without.png").refiner is None
