"""`python -m recipes.emoji train` and `python -m recipes.emoji evaluate`."""

import sys

from recipes.emoji.cli.evaluate import evaluate
from recipes.emoji.cli.train import train
from undertow.cli import main

VERBS = {"train": train, "evaluate": evaluate}
PROGRAM = "python -m recipes.emoji"

if __name__ == "__main__":
    sys.exit(main(verbs=VERBS, program=PROGRAM, about="Train and measure the embedded text-to-image model."))
