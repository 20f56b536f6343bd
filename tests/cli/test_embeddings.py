"""Textual inversions on the command line: shown by inspect, drawn with, and asked for again by --from."""

import pytest
import torch
from safetensors.torch import save_file

from tests.services import pipeline_folder
from undertow.cli.app import main

WIDE = torch.ones(2, 768)
DRAW = ("--steps", "1", "--size", "64x64", "--guidance", "1", "--seed", "3", "--no-show")


@pytest.fixture
def style(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_file({"emb_params": WIDE}, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_inspect_says_what_it_is(style, capsys):
    assert main(["inspect", str(style)]) == 0
    shown = capsys.readouterr().out
    for expected in ("a textual inversion", "Stable Diffusion 1", "2 of 768 numbers for clip_l", "--embedding"):
        assert expected in shown


def test_a_file_that_is_a_model_is_inspected_as_one(style, capsys):
    save_file({"conv_in.weight": torch.ones(4, 8)}, "model.safetensors")
    assert main(["inspect", "model.safetensors"]) == 2
    assert "textual inversion" not in capsys.readouterr().err


def test_a_picture_drawn_with_it_is_not_repeated_without_it(style, capsys):
    model = ("--model", str(pipeline_folder("sd1")))
    assert main(["generate", "a style", *model, *DRAW, "--embedding", str(style), "--out", "a.png"]) == 0
    capsys.readouterr()
    assert main(["generate", "--from", "a.png", *model, "--no-show", "--out", "b.png"]) == 2
    assert "embeddings is 'style', expected names of those that were added: none was; add it with --embedding FILE" in (
        capsys.readouterr().err
    )
    again = ["generate", "--from", "a.png", *model, "--no-show", "--embedding", str(style), "--out", "b.png"]
    assert main(again) == 0


@pytest.mark.parametrize("verb", [("generate", "x", "--model"), ("inspect", "--model", "sd15")])
def test_taken_for_a_model_or_an_adapter_it_says_how_to_use_it(style, verb, capsys):
    assert main([*verb, str(style)]) == 2
    assert "add it to a model with --embedding FILE" in capsys.readouterr().err
