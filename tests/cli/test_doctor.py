"""`undertow doctor`, with a model that is whole and one that is used wrongly."""

import json
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.services import copy_pipeline, pipeline_folder
from undertow import UNetService
from undertow.cli.app import main


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_wrong_type_of_prediction_is_cured_by_a_preset(capsys):
    Path("undertow.toml").write_text('out = "pictures"')
    line = ["doctor", "emoji", "--prediction", "epsilon", "--only", "wrong-prediction-type,guidance-high"]
    assert main([*line, "--guidance", "30"]) == 1
    assert "the network predicts v" in capsys.readouterr().out
    assert main([*line, "--guidance", "30", "--fix"]) == 0, "nothing serious is left"
    assert "with it gone: wrong-prediction-type, guidance-high; left: nothing" in capsys.readouterr().err
    config = tomllib.loads(Path("undertow.toml").read_text())
    assert config == {"out": "pictures", "presets": {"doctor-emoji": {"prediction": "v", "guidance": 5.0}}}


def test_nothing_wrong_is_one_line(capsys):
    assert main(["doctor", str(pipeline_folder("sd1")), "--only", "nan"]) == 0
    assert capsys.readouterr().out == "9 rules found nothing wrong\n"


def test_a_model_that_does_not_load_is_diagnosed(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = copy_pipeline("sd1", tmp_path / "damaged")
    file = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["conv_in.weight"][0] = float("nan")
    save_file(tensors, file)
    assert main(["doctor", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["rule"] for one in found["findings"]] == ["weights-not-finite"]
    assert "conv_in.weight" in found["findings"][0]["module"]
    assert len(found["skipped"]) > 20
    assert main(["doctor", str(folder), "--only", "nan"]) == 1
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [
        f"not looked at: 8 rules, because {folder} was not loaded (--json names them)",
        "1 rule asked: 1 serious",
    ]


def test_a_picture_of_ours_brings_its_request(capsys):
    model = str(pipeline_folder("sd1"))
    assert main(["generate", "abc", "-m", model, "--steps", "1", "--guidance", "40", "-o", "a.png", "--no-show"]) == 0
    capsys.readouterr()
    assert main(["doctor", model, "--picture", "a.png", "--only", "guidance-high,few-steps,another-model"]) == 0
    out = capsys.readouterr().out
    assert "guidance_scale is 40" in out
    assert "1 steps" in out
    assert "another-model" not in out


def test_a_picture_of_ours_brings_its_model_and_the_adapters_that_came_with_it(capsys):
    line = ["generate", "owl", "-m", "emoji-turbo", "--steps", "1", "-o", "a.png", "--no-show"]
    assert main(line) == 0
    assert main(["generate", "owl", "--lora", "mosaic", "--steps", "1", "-o", "styled.png", "--no-show"]) == 0
    capsys.readouterr()
    asked = ["--only", "another-model,guidance-off,few-steps"]
    assert main(["doctor", "--picture", "a.png", *asked]) == 0
    told = capsys.readouterr()
    assert "note: the picture names emoji-turbo, which is examined" in told.err
    assert told.out == "3 rules found nothing wrong\n"
    assert main(["doctor", "emoji", "--picture", "a.png", *asked]) == 1
    told = capsys.readouterr()
    assert "another-model" in told.out, "what is typed counts more"
    assert "which is examined" not in told.err
    assert main(["doctor", "--picture", "styled.png", "--only", "another-model"]) == 0


def test_a_lora_that_is_typed_leaves_the_picture_s_other_adapters(monkeypatch, capsys):
    Image.new("RGB", (64, 64)).save("map.png")
    typed = ["--lora", "mosaic", "--adapter", "edges@0.9=map.png", "--steps", "1", "--no-show"]
    assert main(["generate", "owl", *typed, "-o", "mix.png"]) == 0
    asked, diagnose = [], UNetService.diagnose
    monkeypatch.setattr(
        UNetService, "diagnose", lambda self, request, **how: asked.append(request) or diagnose(self, request, **how)
    )
    assert main(["doctor", "--picture", "mix.png", "--lora", "mosaic@0.3", "--only", "another-model"]) == 0
    (request,) = asked
    assert [(one.title, one.scale, len(one.images())) for one in request.adapters] == [
        ("mosaic", 0.3, 0),
        ("edges", 0.9, 1),
    ]


def test_a_picture_of_a_model_that_is_not_here_is_held_against_the_embedded_one(capsys):
    line = ["generate", "abc", "-m", str(pipeline_folder("sd1")), "--steps", "1", "-o", "a.png", "--no-show"]
    assert main(line) == 0
    capsys.readouterr()
    assert main(["doctor", "--picture", "a.png", "--only", "another-model"]) == 1
    told = capsys.readouterr()
    assert "which is examined" not in told.err
    assert "emoji has" in told.out
