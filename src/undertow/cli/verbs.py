"""The catalogue of verbs. Each is imported when it is asked for, so that a command line imports one of them."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module

import typer

Verb = Callable[..., None] | typer.Typer
"""What comes after `undertow`: a function, or a typer application for a group of verbs."""


class Verbs(Mapping[str, Verb]):
    """Verbs by name. A verb lives in a file of its name, under its name."""

    def __init__(self, *names: str):
        self._names = names

    def __getitem__(self, name: str) -> Verb:
        if name not in self._names:
            raise KeyError(name)
        return getattr(import_module(f".{name}", __package__), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


VERBS = Verbs(
    "generate",
    "compare",
    "diff",
    "maps",
    "convert",
    "quantize",
    "doctor",
    "export",
    "extract",
    "inspect",
    "models",
    "plan",
    "preprocess",
    "profile",
    "prune",
    "sample",
    "samplers",
    "words",
    "train",
    "adapters",
    "bench",
    "serve",
    "worker",
    "keys",
)
