"""`python -m recipes.emoji train`, `evaluate` and `turbo`."""

import sys

from recipes.emoji.cli.evaluate import evaluate
from recipes.emoji.cli.train import train
from recipes.emoji.cli.turbo import turbo
from undertow.cli import main

VERBS = {"train": train, "evaluate": evaluate, "turbo": turbo}
PROGRAM = "python -m recipes.emoji"

if __name__ == "__main__":
    sys.exit(main(verbs=VERBS, program=PROGRAM, about="Train and measure the embedded text-to-image model."))
