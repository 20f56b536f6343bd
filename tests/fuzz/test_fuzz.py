"""The crafted command lines, and a share of those of `make fuzz`, the same ones each time."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.crafted import ENTRIES

EXAMPLES = 3
"""Of each kind: some three seconds of a processor, beside twenty for the crafted ones and for the start."""

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # `make fuzz` runs many more of them
@pytest.mark.timeout(900)
def test_no_command_line_of_a_stranger_does_what_none_may_do(tmp_path):
    """One test and one process for all, since its start is half of the work. It forks for every command line, and its
    limits must not be those of this process."""
    crafted = tmp_path / "crafted.json"
    command = [sys.executable, "-m", "tests.fuzz", "--examples", str(EXAMPLES), "--crafted", str(crafted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = {
        name: outcome["problem"] or outcome["said"]
        for name, outcome in json.loads(crafted.read_text()).items()
        if outcome["problem"] is not None or not re.search(ENTRIES[name][1], outcome["said"])
    }
    assert not wrong
