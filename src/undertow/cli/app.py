"""The command line: the catalogue of verbs, and the boundary where errors become one sentence and an exit code.

A verb lives in a file of its name, as a function whose signature typer reads, and has one line in `VERBS`. Torch and
everything that imports it is imported inside the verb's function, so that `undertow --help` stays fast
(tests/cli/test_app.py holds it to that).
"""

import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated

import typer

from undertow.cli import INTERRUPTED
from undertow.cli.adapters import adapters
from undertow.cli.compare import compare
from undertow.cli.config import read_config
from undertow.cli.convert import convert
from undertow.cli.generate import generate
from undertow.cli.inspect import inspect
from undertow.cli.models import models
from undertow.cli.preprocess import preprocess
from undertow.cli.sample import sample
from undertow.cli.samplers import samplers
from undertow.cli.terminal import SafeConsole
from undertow.cli.train import train
from undertow.cli.usage import usage_sentence
from undertow.cli.verb_help import VerbCommand, with_plain_help
from undertow.cli.words import words
from undertow.errors import OutOfMemory, UndertowError
from undertow.limits import replaced
from undertow.shortage import is_out_of_memory

Verb = Callable[..., None] | typer.Typer
"""What comes after `undertow`: a function, or a typer application for a group of verbs."""

VERBS: dict[str, Verb] = {
    "generate": generate,
    "compare": compare,
    "convert": convert,
    "inspect": inspect,
    "models": models,
    "preprocess": preprocess,
    "sample": sample,
    "samplers": samplers,
    "words": words,
    "train": train,
    "adapters": adapters,
}

ABOUT = "A diffusion U-Net engine: build, train, sample and look inside."

DEBUG = "--debug"
"""Shows the traceback of an error; before the verb, and behind those that have no such option of their own."""

DONE, BUG, REFUSED = 0, 1, 2

MISPLACED = -1
"""In place of an exit code: `--debug` stands behind a verb that has no such option, and means the one before it."""


@dataclass(kw_only=True)
class Settings:
    """The options that stand before the verb."""

    debug: bool = False


def main(
    arguments: Sequence[str] | None = None,
    verbs: Mapping[str, Verb] = VERBS,
    *,
    program: str = "undertow",
    about: str = ABOUT,
) -> int:
    """Run one command line, the process's own when `None`, and return its exit code.

    program: the command as the user types it. about: what its help says first.

    0 done; 2 refused: something is wrong with the request, its files or the environment, and one sentence on standard
    error says what; 130 interrupted from the keyboard; 1 a bug of ours.
    """
    settings = Settings()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with replaced(read_config().limits):
            app = _build(verbs, settings, about, completion=" " not in program)
            code = app(arguments or ["--help"], prog_name=program, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.TyperException as error:
        if getattr(error, "option_name", None) != DEBUG:
            sentence = usage_sentence(error, program, arguments)
            return _fail(sentence, settings, REFUSED) if sentence else REFUSED
        code = MISPLACED
    except (UndertowError, OSError) as error:
        return _fail(str(error), settings, REFUSED)
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(str(OutOfMemory("this", cause=error)), settings, REFUSED)
        command = shlex.join([*program.split(), DEBUG, *(one for one in arguments if one != DEBUG)])
        problem = (
            f"unexpected {type(error).__name__}: {error}; this is a bug, please report it with what {command} says"
        )
        return _fail(problem, settings, BUG)
    if code == MISPLACED:
        before = [DEBUG, *(argument for argument in arguments if argument != DEBUG)]
        return main(before, verbs, program=program, about=about)
    if code == INTERRUPTED:
        return _fail("interrupted", settings, INTERRUPTED)
    return code if isinstance(code, int) else DONE


def _build(
    verbs: Mapping[str, Verb], settings: Settings, about: str = ABOUT, *, completion: bool = True
) -> typer.Typer:
    """The typer application that offers `verbs` and writes the global options into `settings`. completion: whether it
    installs the shell's, which needs a program of one word."""
    app = typer.Typer(
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"], "default_map": read_config().defaults()},
    )

    @app.callback(help=about)
    def before_the_verb(  # pyright: ignore[reportUnusedFunction]  # typer keeps it
        debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
        version: Annotated[  # noqa: ARG001  # its callback prints and stops
            bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
        ] = False,
    ) -> None:
        settings.debug = debug

    for name, verb in verbs.items():
        if isinstance(verb, typer.Typer):
            app.add_typer(with_plain_help(verb), name=name)
        else:
            app.command(name, cls=VerbCommand)(verb)
    return app


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"undertow {metadata.version('undertow')} (torch {metadata.version('torch')})")
        raise typer.Exit
    return wanted


def _fail(problem: str, settings: Settings, code: int) -> int:
    if settings.debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    SafeConsole(stderr=True, soft_wrap=True).print("error:", problem, style="red", markup=False, highlight=False)
    return code
