"""Mistakes are answered before anything slow is imported, and work begins with a line of life."""

import subprocess
import sys

MISTAKES = (
    "generate",
    "generate owl --steps 0",
    "generate owl --size 64",
    "generate owl --count 0",
    "generate owl --strength 2",
    "generate owl --image missing.png",
    "generate owl --debug everything",
    "generate owl --model missing.safetensors",
    "generate owl --refiner missing.safetensors",
    "generate owl --lora missing.safetensors",
    "generate owl --adapter edges=missing.png",
    "generate owl --adapter edges --adapter-mask edges=missing.png",
    "generate --help",
    "--help",
)

SCRIPT = """
import sys
from undertow.cli import main
for command in sys.argv[1:]:
    code = main(command.split())
    assert code == (0 if "--help" in command else 2), command
    assert "torch" not in sys.modules, command
"""


def test_a_mistake_is_answered_without_torch():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *MISTAKES], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("error: ")) == (0, len(MISTAKES) - 2), done.stderr
