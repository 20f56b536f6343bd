"""`undertow maps`, on the tiny pipeline."""

import numpy as np
import pytest

from tests.services import pipeline_folder
from undertow.cli import main


def maps(*arguments):
    return main(["maps", "red cat", "-m", str(pipeline_folder("sd1")), "--steps", "1", "--no-show", *arguments])


def test_a_folder_of_maps_is_written(tmp_path, capsys):
    arguments = ("--seed", "3", "-w", "cat", "--at-steps", "0-4", "--marks", "--activations", "--out", str(tmp_path))
    assert maps(*arguments) == 0
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    kinds = [f"attention-1.{ending}" for ending in ("png", "npz", "json")]
    assert names == ["3.png", *kinds, "activations.png", "activations-film.png", "activations.json"]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert {"word cat", "word <start>", "tokens"} <= set(np.load(tmp_path / "attention-1.npz").files)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heads", "x"], "--heads is 'x', expected whole numbers and ranges with commas between them"),
        (["--at-steps", "9-2"], "a range that does not end before it begins"),
        (["--out", "a.png"], "--out is 'a.png', expected a folder"),
        (["-w", "cats"], "did you mean 'cat'?"),
        (["--layer", "up_blok"], "layers is 'up_blok'"),
        (["--cells", "999"], "cells is 999, expected sizes of these layers' maps: 8"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert maps(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
