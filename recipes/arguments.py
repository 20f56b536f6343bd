"""Options that the scripts of recipes share."""

import argparse
from collections.abc import Sequence

import torch


def count(text: str) -> int:
    """A whole number of at least 1, for `argparse`, which refuses what this does. Errors: `ArgumentTypeError`."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number of at least 1")
    return number


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads, for `use_threads`; as many as torch takes by itself where it is left out."""
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), help="of the processor, at least 1")


def parsed(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a script that has `add_threads`, which torch keeps to from now on."""
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    return options
