"""Mistakes, and questions that need no network, are answered before torch is imported: that takes seconds."""

import json
import subprocess
import sys

from PIL import Image

MISTAKES = (
    ("generate",),
    ("generate", "owl", "--size", "64x"),
    ("generate", "owl", "--steps", "0"),
    ("generate", "owl", "--sampler", "eulr"),
    ("generate", "owl", "--schedule", "karas"),
    ("generate", "owl", "--dialect", "a11"),
    ("generate", "owl", "--guidance-method", "cgf"),
    ("generate", "owl", "--device", "banana"),
    ("generate", "owl", "--prediction", "banana"),
    ("generate", "owl", "--precision", "fp16"),
    ("generate", "owl", "--model", "emojii"),
    ("generate", "owl", "--adapter", "edges"),
    ("generate", "owl", "--adapter", "references"),
    ("generate", "owl", "--adapter", "edges=a.png,a.png"),
    ("generate", "owl", "--lora", "mosaik"),
    ("generate", "owl", "--name", "fixed.gif"),
    ("generate", "owl", "--out", "{seed}.png"),
    ("generate", "owl", "--preset", "none"),
    ("generate", "--from", "nope.png"),
    ("compare", "owl", "--samplers", "eulr"),
    ("sample", "nope"),
    ("sample", "digits-flow", "--sampler", "eulr"),
    ("samplers", "eulr"),
    ("inspect", "nothing.safetensors"),
    ("inspect", "nope.png"),
    ("inspect", "edgess"),
    ("inspect", "text.txt"),
    ("inspect", "empty"),
    ("words", "emojii"),
    ("models", "nope"),
    ("convert", "nope.ckpt", "new", "--to", "diffusers"),
    ("adapters", "explain", "nope.safetensors"),
    ("adapters", "impact", "edges"),
    ("train", "lora", "--images", "nope"),
    ("train", "lora", "--images", "pictures", "--device", "banana"),
    ("train", "lora", "--images", "pictures", "--start-from", "nope.safetensors"),
    ("train", "controlnet", "--images", "pictures", "--hint", "hed"),
    ("train", "image-prompt", "--images", "pictures", "--references", "nope"),
    ("train", "folder", "--data", "nope"),
    ("train", "digits", "--objective", "flo"),
    ("train", "digits", "--config-file", "nope.json"),
)
ANSWERS = (("inspect", "a.png"), ("words", "emoji", "--like", "apple"))

PROGRAM = """
import json, sys
from undertow.cli import main
mistakes, answers = json.load(sys.stdin)
for lines, expected in ((mistakes, 2), (answers, 0)):
    for line in lines:
        code = main(line)
        if code != expected or "torch" in sys.modules:
            sys.exit(f"{line}: exit code {code}, torch {'torch' in sys.modules}")
"""


def test_what_needs_no_network_is_answered_without_torch(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "text.txt").write_text("some text")
    for folder in ("empty", "pictures"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "red apple.png")
    command, lines = [sys.executable, "-c", PROGRAM], json.dumps([MISTAKES, ANSWERS])
    done = subprocess.run(command, input=lines, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
