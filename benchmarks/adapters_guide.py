"""Draws the pictures of docs/guides/adapters.md by running its own examples.

    python benchmarks/adapters_guide.py

Writes docs/images/adapters-kinds.png and adapters-batch.png, each in a minute of one core.
"""

import tempfile
from pathlib import Path

import torch
from lib.guide import run_examples, strip

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "adapters.md"
UNTIL = "## Training a LoRA"
KINDS = {
    "rocket": "rocket",
    "map": "canny",
    "traced": "edges",
    "referenced": "references",
    "mosaic": "mosaic",
    "lines": "line-drawing",
    "all": "edges + references + mosaic",
}
BATCH = ("plain", "edges", "edges, left half", "references", "a LoRA for each half")


def main() -> None:
    torch.set_num_threads(1)
    images = ROOT / "docs" / "images"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_examples(PAGE, folder, UNTIL)
        strip({title: folder / f"{file}.png" for file, title in KINDS.items()}).save(images / "adapters-kinds.png")
        drawn = {title: folder / f"drawn-{index}.png" for index, title in enumerate(BATCH)}
        strip(drawn).save(images / "adapters-batch.png")
    print(f"written: {images / 'adapters-kinds.png'}, {images / 'adapters-batch.png'}")


if __name__ == "__main__":
    main()
