"""Mistakes are answered before anything slow is imported, and work begins with a line of life."""

import subprocess
import sys
from pathlib import Path

import undertow

MODELS = Path(undertow.__file__).parent / "models"

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
from pathlib import Path

import undertow

MODELS = Path(undertow.__file__).parent / "models"
from undertow.cli import main
for command in sys.argv[1:]:
    code = main(command.split())
    assert code == (0 if "--help" in command else 2), command
    assert "torch" not in sys.modules, command
"""


def test_a_mistake_is_answered_without_torch():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *MISTAKES], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("error: ")) == (0, len(MISTAKES) - 2), done.stderr


WORK = (
    "inspect sd15 --ports",
    "inspect MODELS/emoji/unet",
    "inspect MODELS/emoji/adapters/mosaic.safetensors --model emoji",
    "samplers euler",
    "sample digits-flow --count 1 --class 3 --steps 1 --out OUT/grid.png",
    "generate owl --steps 1 --no-show --seed 0 --out OUT",
    "generate owl --steps 1 --no-show --out OUT --lora mosaic",
    "generate owl --steps 1 --no-show --out OUT --adapter references=OUT/0.png",
    "adapters explain mosaic line-drawing",
)
"""Of everything that runs a network, something: U-Nets, text and image encoders, adapters. `inspect --trace` computes
with shapes alone, which PyTorch itself does with parts of its compiler."""

HEAVY = ("torch._dynamo", "transformers", "sympy", "torch.distributed.tensor", "matplotlib")

WORKING = f"""
import sys
from pathlib import Path

import undertow

MODELS = Path(undertow.__file__).parent / "models"
from undertow.cli import main
for command in sys.argv[1:]:
    assert main(command.split()) == 0, command
    assert not (found := [name for name in {HEAVY} if name in sys.modules]), (command, found)
"""


def test_no_command_imports_a_compiler_or_transformers(tmp_path):
    """With what is installed for training; each took a command two seconds."""
    commands = [one.replace("OUT", str(tmp_path)).replace("MODELS", str(MODELS)) for one in WORK]
    done = subprocess.run([sys.executable, "-c", WORKING, *commands], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
