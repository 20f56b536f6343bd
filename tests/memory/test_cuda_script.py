"""The script that waits for a GPU (`python -m benchmarks.cuda_memory`) runs to its end, here with tiny networks."""

import pytest

from benchmarks import cuda_memory
from undertow.memory.calibration import UNCALIBRATED, read_calibration

pytestmark = pytest.mark.slow


def test_every_section_runs_on_a_cpu_too(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    cuda_memory.main(["--device", "cpu"])
    said = capsys.readouterr().out
    assert "Traceback" not in said
    assert "failed" not in said
    for name in cuda_memory.SECTIONS:
        assert f"## {name}" in said
    streamed = [line for line in said.splitlines() if line.startswith(("| in turn", "| the next while"))]
    assert [line.split("|")[4].strip() for line in streamed] == ["0.0", "0.0"], "to the bit"
    assert said.count("a fresh service: True") == 3
    assert "without: True" in said
    assert "False" not in said
    assert read_calibration() == UNCALIBRATED, "what a CPU takes is no GPU's"


def test_what_comes_too_late_is_left_out_and_named(capsys):
    cuda_memory.main(["--device", "cpu", "--seconds", "-1"])
    assert capsys.readouterr().out.count("left out: -1 seconds are over") == len(cuda_memory.SECTIONS)
