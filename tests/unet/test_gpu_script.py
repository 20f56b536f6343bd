"""The script that waits for a GPU (`python -m benchmarks.gpu`) runs to its end, here with narrow networks."""

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.slow


def test_every_section_runs_on_a_cpu_too_and_is_on_the_page(capsys, tmp_path):
    page = tmp_path / "speed-gpu.md"
    gpu.main(["--device", "cpu", "--page", str(page)])
    said = capsys.readouterr().out
    assert "Traceback" not in said
    written = page.read_text(encoding="utf-8")
    for name in gpu.SECTIONS:
        assert f"## {name}" in written
    parity = [line.split("|")[1:-1] for line in written.splitlines() if line.startswith("| sd")]
    assert all(float(figures[1]) < 1e-6 for figures in parity if "e-" in figures[1])


def test_what_comes_too_late_is_left_out_and_named(capsys):
    gpu.main(["--device", "cpu", "--seconds", "-1"])
    assert capsys.readouterr().out.count("left out: -1 seconds are over") == len(gpu.SECTIONS)
