"""`undertow profile` and `generate --report`."""

from pathlib import Path

import pytest

from tests.services import pipeline_folder
from undertow.cli.app import main
from undertow.inspection.profile import PEAK_SIDE


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PEAK_SIDE, "cpu", 64)


def test_layers_operations_and_memory_are_listed(capsys):
    model = str(pipeline_folder("sd1"))
    assert main(["profile", model, "--prompt", "abc", "--steps", "1", "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "1 evaluations of 2 rows" in out
    assert out.count("of tensors") == 2
    assert "GFLOP/s that a matrix product reaches here" in out


def test_a_report_comes_beside_the_pictures(capsys):
    line = ["generate", "abc", "-m", str(pipeline_folder("sd1")), "--steps", "1", "-o", "a.png", "--no-show"]
    assert main([*line, "--report", "page.html"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Step by step" in page
    assert "data:image/png;base64," in page
    capsys.readouterr()
