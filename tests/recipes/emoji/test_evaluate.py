"""`python -m recipes.emoji evaluate` on a tiny model: the page, its pictures, what people wrote on it, and the card."""

import shutil

import pytest
from PIL import Image

from recipes.emoji import render as rendering
from recipes.emoji.__main__ import VERBS
from recipes.emoji.page import run_logs
from recipes.emoji.sections import NOTES_SECTION, find_section, replace_section
from recipes.emoji.sheets import SAMPLES, sheet_scenes
from tests.recipes.emoji.tiny import DrawnGlyphs, trained_run
from undertow.cli import main
from undertow.training.log import StepRecord, append_record


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A copy, since a card is written into its model."""
    return shutil.copytree(trained_run(), tmp_path_factory.mktemp("emoji") / "run")


def test_the_sheet_has_all_kinds_in_turn():
    scenes = sheet_scenes()
    assert len(scenes) == SAMPLES
    assert [len(scene.names) for scene in scenes[:6]] == [1, 1, 2, 1, 1, 2]
    assert sheet_scenes() == scenes


@pytest.mark.slow
def test_the_page_has_every_figure_and_keeps_what_people_wrote(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rendering, "Glyphs", DrawnGlyphs)
    peer = tmp_path / "peer.json"
    peer.write_text('{"program": "diffusers 9.9", "count": 2, "right": [0.5, 0, 0], "color": [0, 0, 0]}')
    out = tmp_path / "results"
    command = ["evaluate", "--model", str(run / "model"), "--prompts", "2", "--steps", "1", "--out", str(out)]
    assert main([*command, "--run", str(run), "--diffusers", str(peer), "--card", "--machine", "a laptop"], VERBS) == 0
    assert f"written: {out / 'emoji.md'}" in capsys.readouterr().out

    page = (out / "emoji.md").read_text()
    for said in (
        "| ≥ 99% | ",
        "| ≥ 98% | ",
        "| ≥ 80% | ",
        "| ≥ 31 dB | ",
        "diffusers 9.9",
        "a laptop",
        "Not met:",
        "dpmpp_2m",
    ):
        assert said in page, said
    pictures = ("emoji.png", *(f"emoji-kind-{n}.png" for n in (1, 2, 3)), "emoji-loss-autoencoder.png")
    for name in (*pictures, "emoji-loss-text-to-image.png"):
        assert f"({name})" in page
        with Image.open(out / name) as picture:
            assert picture.size[0] > 300
    card = (run / "model" / "README.md").read_text()
    assert "Not measured yet" not in card
    assert "| ≥ 31 dB | " in card
    assert "## Limits" in card

    (out / "emoji.md").write_text(replace_section(page, NOTES_SECTION, "We tried and learned."))
    assert main(command, VERBS) == 0
    again = (out / "emoji.md").read_text()
    assert find_section(again, NOTES_SECTION) == "We tried and learned."
    assert "emoji-loss-autoencoder.png" in again, "curves that are there stay"
    assert "diffusers' pipeline was not measured" in again


@pytest.mark.slow
def test_a_missing_font_is_one_sentence(run, tmp_path, capsys):
    assert main(["evaluate", "--font", str(tmp_path / "none.ttf"), "--model", str(run / "model")], VERBS) == 2
    assert "apt install" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rendering, "Glyphs", DrawnGlyphs)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "results"
    for wrong in ("nowhere", "empty"):
        assert main(["evaluate", "--run", str(tmp_path / wrong), "--out", str(out)], VERBS) == 2
        said = capsys.readouterr().err
        assert f"--run is {tmp_path / wrong}, expected the folder of a run, with log.jsonl in the folder of" in said
        assert "leave it out to keep the loss curves that are there" in said
        assert not out.exists()


def test_a_stage_without_records_has_no_curve(tmp_path):
    """And the curve of it that is there stays."""
    record = StepRecord(step=1, loss=1.0, gradient_norm=1.0, learning_rate=1e-3, images_per_second=1.0, seconds=1.0)
    for stage in ("autoencoder", "details"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "log.jsonl").touch()
    append_record(tmp_path / "autoencoder" / "log.jsonl", record)
    assert run_logs(tmp_path) == {"autoencoder": [record]}


@pytest.mark.slow
def test_another_number_of_prompts_than_the_peers_is_refused_before_any_work(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rendering, "Glyphs", DrawnGlyphs)
    (tmp_path / "peer.json").write_text('{"program": "p", "count": 3, "right": [0, 0, 0], "color": [0, 0, 0]}')
    command = ["evaluate", "--model", str(run / "model"), "--prompts", "2", "--out", str(tmp_path / "out")]
    assert main([*command, "--diffusers", str(tmp_path / "peer.json")], VERBS) == 2
    assert "--prompts is 2, expected 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
