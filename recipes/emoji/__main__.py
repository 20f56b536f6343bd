"""`python -m recipes.emoji train`, `evaluate`, `turbo` and `few-steps`."""

import sys

from recipes.emoji.cli.evaluate import evaluate
from recipes.emoji.cli.few_steps import few_steps
from recipes.emoji.cli.train import train
from recipes.emoji.cli.turbo import turbo
from undertow.cli import main

VERBS = {"train": train, "evaluate": evaluate, "turbo": turbo, "few-steps": few_steps}
PROGRAM = "python -m recipes.emoji"

if __name__ == "__main__":
    sys.exit(main(verbs=VERBS, program=PROGRAM, about="Train and measure the embedded text-to-image model."))
