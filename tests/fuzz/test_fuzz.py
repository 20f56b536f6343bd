"""The crafted command lines, and a share of those of `make fuzz`, the same ones each time."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.crafted import ENTRIES

EXAMPLES = 12
"""Of each kind: some ten seconds of a processor, beside as much for the crafted ones and for the start."""

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Share:
    code: int
    said: str
    crafted: dict[str, Any]


@pytest.fixture(scope="module")
def share(tmp_path_factory) -> Share:
    """One process of its own: it forks for every command line, and its limits must not be this one's."""
    crafted = tmp_path_factory.mktemp("fuzz") / "crafted.json"
    command = [sys.executable, "-m", "tests.fuzz", "--examples", str(EXAMPLES), "--crafted", str(crafted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return Share(
        done.returncode, done.stdout + done.stderr, json.loads(crafted.read_text()) if crafted.exists() else {}
    )


@pytest.mark.timeout(600)
def test_no_command_line_of_a_stranger_does_what_none_may_do(share):
    assert share.code == 0, share.said


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ENTRIES)
def test_what_once_broke_is_answered_in_a_sentence(name, share):
    outcome = share.crafted[name]
    assert outcome["problem"] is None, outcome["said"]
    assert re.search(ENTRIES[name][1], outcome["said"]), outcome["said"]
