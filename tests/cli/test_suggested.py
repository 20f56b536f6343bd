"""Verbs that draw with a model which was distilled to few steps."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.distilled import distilled_pipeline
from undertow.cli import main
from undertow.engine.metadata import read_stored

NOTE = "note: turbo was distilled to few steps: drawn with "


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    return str(distilled_pipeline(tmp_path_factory.mktemp("models") / "turbo"))


def drawn(turbo, out, *options) -> tuple[int, float]:
    assert (
        main(["generate", "red apple", "--model", turbo, "--seed", "7", "--out", str(out), "--no-show", *options]) == 0
    )
    request = read_stored(out / "7.png").description({}).request
    return request.steps, request.guidance_scale


@pytest.mark.parametrize(
    ("typed", "expected", "said"),
    [
        ((), (4, 1.0), "--steps 4 --guidance 1\n"),
        (("--steps", "2"), (2, 1.0), "--guidance 1\n"),
        (("--guidance", "2"), (4, 2.0), "--steps 4\n"),
        (("--steps", "6", "--guidance", "5"), (6, 5.0), None),
    ],
)
def test_what_is_not_typed_is_as_the_model_suggests_and_noted_once(turbo, typed, expected, said, tmp_path, capsys):
    assert drawn(turbo, tmp_path, *typed) == expected
    told = capsys.readouterr().err
    assert told.count(NOTE) == (said is not None)
    assert said is None or NOTE + said in told


def test_presets_and_lines_of_a_file_count_as_typed(turbo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "undertow.toml").write_text("[presets.three]\nsteps = 3\n")
    assert drawn(turbo, tmp_path, "--preset", "three") == (3, 1.0)
    lines = ["red apple", "red apple | --steps 2", json.dumps({"prompt": "red apple", "guidance_scale": 3})]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    options = ["--model", turbo, "--out", "each", "--name", "{steps} and {guidance}"]
    capsys.readouterr()
    assert main(["generate", "--prompts", "prompts.txt", *options]) == 0
    told = capsys.readouterr().err
    assert told.count(NOTE) == 1, "it is noted once for all"
    assert NOTE + "--steps 4 --guidance 1 where nothing else is given\n" in told
    assert {one.name for one in (tmp_path / "each").iterdir()} == {"4 and 1.0.png", "2 and 1.0.png", "4 and 3.0.png"}


def test_a_picture_that_is_drawn_again_keeps_its_own(turbo, tmp_path, capsys):
    assert drawn(turbo, tmp_path, "--steps", "6", "--guidance", "5") == (6, 5.0)
    capsys.readouterr()
    assert (
        main(["generate", "--from", str(tmp_path / "7.png"), "--model", turbo, "--out", str(tmp_path / "again")]) == 0
    )
    assert NOTE not in capsys.readouterr().err


def test_what_a_model_is_says_that_it_takes_few_steps(turbo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    said = "distilled to few steps: drawn with --steps 4"
    for model, expected in (
        (turbo, f"{said} --guidance 1\n"),
        ("emoji-turbo", f"{said} --guidance 1\n"),
        ("lcm-sd15", f"{said}\n"),
        ("sd15", None),
        (str(Path(turbo) / "unet"), None),
        ("emoji", None),
    ):
        assert main(["inspect", model]) == 0
        told = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
        assert expected in told if expected else "distilled" not in told
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert f"predicts v, {said} --guidance 1 " in lines["emoji-turbo"]
    assert "distilled" not in lines["emoji"]


def test_zero_steps_are_refused_as_ever(turbo, tmp_path, capsys):
    assert main(["generate", "red apple", "--model", turbo, "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "steps is 0" in capsys.readouterr().err


def test_few_steps_are_compared(turbo, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["compare", "red apple", "--model", turbo, "--out", str(out), "--no-show"]) == 0
    with Image.open(out) as sheet:
        assert sheet.width > 3 * sheet.height / 2  # one row of four
    assert NOTE + "--guidance 1\n" in capsys.readouterr().err, "the steps are compared"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--seeds", "1,2"), "--steps 4 --guidance 1\n"),
        (("--seeds", "1,2", "--steps", "2"), "--guidance 1\n"),
        (("--guidance", "1,2", "--steps", "2"), None),
        (("--guidance", "2", "--steps", "1,2"), None),
    ],
)
def test_a_sheet_notes_what_all_of_its_cells_have_of_the_model(turbo, typed, said, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["compare", "red apple", "--model", turbo, "--out", str(out), "--no-show", *typed]) == 0
    told = capsys.readouterr().err
    assert told.count(NOTE) == (said is not None)
    assert said is None or NOTE + said in told


def test_the_doctor_looks_at_what_would_be_drawn(turbo, capsys):
    assert main(["doctor", turbo, "--prompt", "red apple", "--only", "guidance-high,distilled-steps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_the_lora_of_the_embedded_model_says_what_suits_it(tmp_path, capsys):
    line = ["generate", "owl", "--lora", "turbo", "--no-show", "--out", str(tmp_path)]
    suits = ["--sampler", "lcm", "--schedule", "sgm_uniform", "--steps", "4", "--guidance", "1"]
    assert main([*line, "--steps", "9"]) == 0
    noted = f"note: turbo was made for few steps, as its name says: {' '.join(suits)} suits it"
    assert noted in capsys.readouterr().err
    assert main([*line, *suits]) == 0
    assert "few steps" not in capsys.readouterr().err


def test_the_doctor_cures_a_lora_for_few_steps_with_its_sampler_and_schedule(capsys):
    assert main(["doctor", "emoji", "--prompt", "owl", "--lora", "turbo", "--only", "distilled-steps", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found["fix"] == "draw with --sampler lcm --schedule sgm_uniform --steps 4 --guidance 1"
    assert found["changes"] == [
        "sampler = 'lcm'", "schedule = 'sgm_uniform'", "steps = 4", "guidance_scale = 1.0"
    ]  # fmt: skip
