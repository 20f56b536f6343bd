import re
from pathlib import Path

import pytest
from PIL import Image

from undertow.cli import main
from undertow.diffusion import GRIDS
from undertow.sampling import SAMPLERS


def test_every_sampler_is_listed_with_its_other_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["samplers"]) == 0
    out = capsys.readouterr().out
    first_words = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert SAMPLERS.keys() <= first_words
    line = next(line for line in out.splitlines() if line.split()[:1] == ["dpm2_a"])
    assert line.split()[1:4] == ["2", "2", "yes"]
    assert "DPM2 a" in line
    assert "dpm_2_ancestral" in line


def test_no_name_is_broken_in_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["samplers"]) == 0
    words = set(re.findall(r"[^\s;,]+", capsys.readouterr().out))
    assert SAMPLERS.keys() <= words
    assert {name for entry in SAMPLERS.values() for name in entry.aliases.get("ComfyUI", ())} <= words


def test_every_grid_is_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["samplers", "--schedules"]) == 0
    assert GRIDS.keys() <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}


def test_one_sampler_is_shown_by_the_name_of_another_tool(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["samplers", "DPM++ 2S a"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dpmpp_2s_a:")
    assert "eta" in out
    assert "at least 0" in out


@pytest.mark.slow
def test_the_plot_is_a_picture(tmp_path: Path):
    assert main(["samplers", "--plot", str(tmp_path / "grids.png")]) == 0
    with Image.open(tmp_path / "grids.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize("name", ["eulr", "dpm++_2m"])
def test_unknown_samplers_are_refused_in_one_sentence(name: str, capsys):
    assert main(["samplers", name]) == 2
    error = capsys.readouterr().err
    assert "did you mean" in error
    assert error.count("\n") == 1
