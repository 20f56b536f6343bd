"""The command line: the boundary where errors become one sentence and an exit code.

A verb lives in a file of its name, as a function whose signature typer reads, and has one line in `verbs.VERBS`. Only
the verb that was typed is imported, and torch inside its function, so that help and `undertow plan` answer at once
(tests/cli/test_app.py holds them to that).
"""

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from undertow.cli import INTERRUPTED
from undertow.cli.config_file import config_file
from undertow.cli.verb_help import VerbCommand, with_plain_help
from undertow.cli.verbs import VERBS, Verb
from undertow.errors import OutOfMemory, UndertowError
from undertow.limits import replaced
from undertow.shortage import is_out_of_memory

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
        with replaced(_limits()):
            app = _build(_typed(arguments, verbs), settings, about, completion=" " not in program)
            code = app(arguments or ["--help"], prog_name=program, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.TyperException as error:
        if getattr(error, "option_name", None) != DEBUG:
            from undertow.cli.usage import usage_sentence  # with all options of requests

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


def _typed(arguments: Sequence[str], verbs: Mapping[str, Verb]) -> Mapping[str, Verb]:
    """The verb that a command line begins with, alone; all of them where it names none."""
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    return {name: verbs[name]} if name in verbs else verbs


def _defaults() -> dict[str, Any]:
    """What `undertow.toml` says of options that were not typed."""
    if config_file() is None:
        return {}
    from undertow.cli.config import read_config  # its records need pydantic, which is slow to import

    return read_config().defaults()


def _limits() -> Mapping[str, int]:
    """What `undertow.toml` says of limits."""
    if config_file() is None:
        return {}
    from undertow.cli.config import read_config  # as above

    return read_config().limits


def _build(
    verbs: Mapping[str, Verb], settings: Settings, about: str = ABOUT, *, completion: bool = True
) -> typer.Typer:
    """The typer application that offers `verbs` and writes the global options into `settings`. completion: whether it
    installs the shell's, which needs a program of one word."""
    app = typer.Typer(
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"], "default_map": _defaults()},
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
        from importlib import metadata  # slow to import

        typer.echo(f"undertow {metadata.version('undertow')} (torch {metadata.version('torch')})")
        raise typer.Exit
    return wanted


def _fail(problem: str, settings: Settings, code: int) -> int:
    if settings.debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    from undertow.cli.terminal import SafeConsole  # rich is slow to import

    SafeConsole(stderr=True, soft_wrap=True).print("error:", problem, style="red", markup=False, highlight=False)
    return code
