"""Textual inversions on the command line: shown by inspect, drawn with, and asked for again by --from."""

import hashlib
import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
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
    assert "give textual inversion 'style' (hash " in capsys.readouterr().err
    again = ["generate", "--from", "a.png", *model, "--no-show", "--embedding", str(style), "--out", "b.png"]
    assert main(again) == 0
    assert "the picture was drawn with" not in capsys.readouterr().err
    with Image.open("a.png") as picture:
        texts = picture.info
    digits = hashlib.sha256(style.read_bytes()).hexdigest()[:12]  # as A1111's textual_inversion.py has it
    assert f'TI hashes: "style: {digits}"' in texts["parameters"]
    assert json.loads(texts["undertow"])["embedding_hashes"] == {"style": digits}
    save_file({"emb_params": WIDE + 1}, style)
    assert main([*again, "--overwrite"]) == 0
    assert f"drawn with the textual inversion 'style' with the hash {digits}; {style} has" in capsys.readouterr().err


def test_a_picture_of_a1111_names_those_that_it_was_drawn_with(style, capsys):
    """Listed once as not taken, and not when the file is given."""
    info = PngInfo()
    text = 'a style\nSteps: 1, CFG scale: 1, Seed: 3, Size: 64x64, TI hashes: "style: 0123456789ab", RNG: CPU'
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save("theirs.png", pnginfo=info)
    drawn = ["generate", "--from", "theirs.png", "--model", str(pipeline_folder("sd1")), "--no-show", "--out", "b.png"]
    assert main(drawn) == 0
    note = "drawn without textual inversion 'style' (hash 0123456789ab); --embedding FILE takes it"
    assert note in capsys.readouterr().err
    assert main([*drawn, "--embedding", str(style), "--overwrite"]) == 0
    told = capsys.readouterr().err
    assert "drawn without" not in told
    assert "'style' with the hash 0123456789ab" in told


@pytest.mark.parametrize("verb", [("generate", "x", "--model"), ("inspect", "--model", "sd15")])
def test_taken_for_a_model_or_an_adapter_it_says_how_to_use_it(style, verb, capsys):
    assert main([*verb, str(style)]) == 2
    assert "add it to a model with --embedding FILE" in capsys.readouterr().err
