"""`undertow profile` and `generate --report`."""

from contextlib import nullcontext
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


@pytest.mark.parametrize(
    "line",
    [
        ["generate", "abc", "--report", "FULL/x.html"],
        ["generate", "abc", "--trace", "FULL/x"],
        ["profile", "sd15", "--trace", "FULL/t.json"],
        ["diff", "emoji", "emoji", "--bundle", "FULL/x"],
    ],
    ids=lambda line: " ".join((line[0], line[-2])),
)
def test_a_folder_that_takes_no_files_is_refused_before_anything_is_drawn(line, capsys, monkeypatch):
    full = Path("full")
    full.mkdir()

    def takes_none(dir):
        if dir.name == full.name:
            raise OSError(28, "No space left on device")
        return nullcontext()

    monkeypatch.setattr("undertow.pictures.names.TemporaryFile", takes_none)
    monkeypatch.setattr("undertow.cli.model_loading.LoadingOptions.load", lambda *_: pytest.fail("it was loaded"))
    typed = [word.replace("FULL", "full") for word in line]
    assert main([*typed, *(["-m", "emoji", "--no-show"] if line[0] == "generate" else [])]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {line[-2]} is ")
    assert "expected a folder that can be written" in said
    assert "full takes no files (No space left on device)" in said


def test_a_report_comes_beside_the_pictures(capsys):
    line = ["generate", "abc", "-m", str(pipeline_folder("sd1")), "--steps", "1", "-o", "a.png", "--no-show"]
    assert main([*line, "--report", "page.html", "--trace", "layers.jsonl"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Step by step" in page
    assert "data:image/png;base64," in page
    told = capsys.readouterr()
    assert told.out == "a.png\n"
    assert told.err.splitlines()[-2:] == ["wrote layers.jsonl", "wrote page.html"]
