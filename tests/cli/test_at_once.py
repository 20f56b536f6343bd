"""Mistakes are answered before anything slow is imported, and work begins with a line of life."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

import undertow

MODELS = Path(undertow.__file__).parent / "models"

MISTAKES = (
    "generate",
    "generate owl --steps 0",
    "generate owl --size 64x",
    "generate owl --sampler eulr",
    "generate owl --schedule karas",
    "generate owl --dialect a11",
    "generate owl --guidance-method cgf",
    "generate owl --device banana",
    "generate owl --prediction banana",
    "generate owl --precision fp16",
    "generate owl --model emojii",
    "generate owl --adapter edges",
    "generate owl --adapter references",
    "generate owl --adapter edges=a.png,a.png",
    "generate owl --lora mosaik",
    "generate owl --name fixed.gif",
    "generate owl --out {seed}.png",
    "generate owl --preset none",
    "generate --from missing.png",
    "generate owl --count 0",
    "generate owl --strength 2",
    "generate owl --image missing.png",
    "generate owl --debug everything",
    "generate owl --model missing.safetensors",
    "generate owl --refiner missing.safetensors",
    "generate owl --lora missing.safetensors",
    "generate owl --adapter edges=missing.png",
    "generate owl --adapter edges --adapter-mask edges=missing.png",
    "adapters explain missing.safetensors",
    "adapters impact missing.safetensors",
    "adapters impact edges",
    "convert missing.safetensors there --to diffusers",
    "export missing.safetensors --to torch-export --out there",
    "export emoji --to web --out there --dtype f32",
    "sample digits-flow --out grid.gif",
    "sample missing",
    "sample digits-flow --sampler eulr",
    "samplers eulr",
    "words emojii",
    "models missing",
    "inspect missing.safetensors",
    "inspect missing.png",
    "inspect edgess",
    "inspect text.txt",
    "inspect empty",
    "train lora --images missing",
    "train lora --images pictures --device banana",
    "train lora --images pictures --start-from missing.safetensors",
    "train controlnet --images pictures --hint hed",
    "train image-prompt --images pictures --references missing",
    "train folder --data missing",
    "prune emoji smaller --images missing --width 0.5",
    "prune emoji smaller --images pictures",
    "prune missing smaller --images pictures --width 0.5",
    "train digits --objective flo",
    "train digits --config-file missing.json",
    "compare owl --samplers eulr",
    "compare owl --steps few",
    "compare owl --model missing",
)
ANSWERS = ("generate --help", "--help", "inspect a.png", "words emoji --like apple")
"""Questions that need no network."""

SCRIPT = """
import sys
from pathlib import Path

import undertow

MODELS = Path(undertow.__file__).parent / "models"
from undertow.cli import main
for command in sys.argv[1:]:
    code, command = int(command[0]), command[1:]
    assert main(command.split()) == code, command
    assert "torch" not in sys.modules, command
"""


def test_a_mistake_is_answered_without_torch(tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    for folder in ("empty", "pictures"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "pictures/red apple.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    codes = [*(f"2{one}" for one in MISTAKES), *(f"0{one}" for one in ANSWERS)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *codes], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("error: ")) == (0, len(MISTAKES)), done.stderr


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
