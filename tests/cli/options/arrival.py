"""What arrives in the library when a command line is run, with stand-ins where the command line ends.

A `Command` says what is typed, who stands in for the library, and all that arrives when no option is given. Each of its
cases types one option (or the few that only count together) and says what then arrives otherwise: everything else must
stay, so that an option that is ignored, mixed up with another or changed in its default cannot pass.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

import undertow
from undertow.cli.app import main
from undertow.cli.verbs import VERBS, Verb

# Everything is imported before anything is replaced: what is imported later would keep a stand-in for good.
for _module in pkgutil.walk_packages(undertow.__path__, "undertow."):
    if not _module.name.endswith("__main__") and ".migrations" not in _module.name:  # which Alembic runs
        importlib.import_module(_module.name)

Places = Mapping[str, Any]

ABSENT = object()
"""In place of a value: nothing arrives there."""


UNDISTILLED = SimpleNamespace(suggested={})
"""Stands in for a model that is drawn with what requests have by default."""

LOADED: Places = {
    "load.dtype": None,
    "load.device": None,
    "load.backend": "eager",
    "load.vae_dtype": None,
    "load.validate_weights": False,
    "load.refiner": None,
    "load.adapter_capacity": None,
    "load.attention": "auto",
    "load.prediction": None,
    "load.zero_terminal_snr": None,
    "load.config": None,
    "load.variant": None,
    "load.vae": None,
    "load.text": None,
    "load.ema": False,
    "load.mmap": False,
    "load.lazy": False,
    "load.allow_pickle": False,
    "load.quantize": None,
}
"""What arrives at `undertow.load` beside the source, of a verb that says nothing else."""


class Boundary:
    """The library as the command line meets it: stand-ins that note what they are given, as "function.argument"."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.patch = patch
        self.arrived: dict[str, Any] = {}

    def stand_in(
        self, path: str, returns: Any = None, *, unnoted: tuple[str, ...] = (), apart: tuple[str, ...] = ()
    ) -> None:
        """Replaces the function at `path`. returns: what it gives, or a function of its arguments. unnoted: arguments
        that no option decides. apart: arguments that are records, noted field by field."""
        module, name = path.rsplit(".", 1)
        real = getattr(importlib.import_module(module), name)

        def call(*positional: Any, **named: Any) -> Any:
            self.note(name, real, positional, named, unnoted=unnoted, apart=apart)
            return returns(*positional, **named) if callable(returns) else returns

        self.patch.setattr(path, call)

    def note(
        self,
        name: str,
        real: Callable[..., Any],
        positional: tuple[Any, ...],
        named: Mapping[str, Any],
        *,
        unnoted: tuple[str, ...] = (),
        apart: tuple[str, ...] = (),
    ) -> None:
        """Notes a call of `real` by the names of its arguments, those left out with their defaults."""
        signature = inspect.signature(real)
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        for argument, value in bound.arguments.items():
            if argument in unnoted or argument == "self":
                continue
            if argument in apart:
                self.arrived |= {
                    f"{argument}.{field.name}": plain(getattr(value, field.name)) for field in fields(value)
                }
            elif signature.parameters[argument].kind is inspect.Parameter.VAR_KEYWORD:
                self.arrived |= {f"{name}.{key}": plain(given) for key, given in value.items()}
            else:
                self.arrived[f"{name}.{argument}"] = plain(value)


def plain(value: Any) -> Any:
    """A value that can be compared: of a picture its size and first pixel."""
    return picture(value.size, value.getpixel((0, 0))) if isinstance(value, Image.Image) else value


def picture(size: tuple[int, int], first_pixel: Any) -> tuple[Any, ...]:
    """How a picture is noted."""
    return "picture", size, first_pixel


def stop(*positional: Any, **named: Any) -> None:
    """Returns nothing to the command line: it has done its part."""
    raise typer.Exit(0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Options as typed, and what arrives otherwise than without them; or with what words they are refused."""

    typed: tuple[str, ...]
    changes: Places = field(default_factory=dict)
    refused: str | None = None

    @property
    def options(self) -> set[str]:
        """The names of the options that are typed."""
        return {word.partition("=")[0] for word in self.typed if re.match("--?[a-z]", word)}


def case(*typed: str, refused: str | None = None, **changes: Any) -> Case:
    """A case whose places are written with two underscores for the dot: load__dtype."""
    return Case(
        typed=typed, changes={place.replace("__", "."): value for place, value in changes.items()}, refused=refused
    )


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line without options. verbs: those of the program. arguments: of the verb, by name. needed: options
    that it cannot do without. boundary: puts the stand-ins up, in an empty current folder. arrives: all that arrives.
    about: what is special."""

    verb: tuple[str, ...]
    verbs: Mapping[str, Verb] = field(default_factory=lambda: VERBS)
    arguments: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    boundary: Callable[[Boundary], None]
    arrives: Places
    cases: tuple[Case, ...] = ()
    about: str = ""

    @property
    def title(self) -> str:
        """For the names of tests."""
        return " ".join((*self.verb, *([f"({self.about})"] if self.about else ())))

    def line(self, more: tuple[str, ...] = ()) -> list[str]:
        """What is typed behind the program's name."""
        given = [word for words in self.arguments.values() for word in ((words,) if isinstance(words, str) else words)]
        return [*self.verb, *given, *self.needed, *more]

    def expected(self, chosen: Case) -> dict[str, Any]:
        """What arrives with the options of a case."""
        merged = {**self.arrives, **chosen.changes}
        return {place: value for place, value in merged.items() if value is not ABSENT}

    def run(self, patch: pytest.MonkeyPatch, folder: Path, more: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
        """The exit code, and what arrived; "files" are those that the command line wrote by itself."""
        patch.chdir(folder)
        boundary = Boundary(patch)
        self.boundary(boundary)
        before = set(folder.rglob("*"))
        code = main(self.line(more), {self.verb[0]: self.verbs[self.verb[0]]})
        made = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before if path.is_file())
        return code, {**boundary.arrived, "files": made}
