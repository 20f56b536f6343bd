"""What a message advises exists: every option, command and function that a sentence of undertow's names."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import typer

import undertow
from tests.cli.options.checks import leaves
from undertow.cli.app import Settings, _build
from undertow.cli.verbs import VERBS

ROOT = Path(undertow.__file__).parent
TYPED = typer.main.get_command(_build(VERBS, Settings()))
LEAVES = dict(leaves(TYPED))
BEFORE_THE_VERB = {name for parameter in TYPED.params for name in parameter.opts} | {"--help"}
OPTIONS = {
    verb: {name for parameter in leaf.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for verb, leaf in LEAVES.items()
}
COMMAND = re.compile(r"(?<=`)undertow ((?:[a-z]+ )*[a-z]+)|undertow ((?:GROUPS)\b(?: [a-z]+)*)".replace(
    "GROUPS", "|".join(sorted({verb[0] for verb in LEAVES}))
))  # fmt: skip
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
FUNCTION = re.compile(r"\bundertow\.(?!toml\b|db\b)([a-z_]+(?:\.[a-z_A-Z]+)*)|`([a-z_]+)=")
HEADER_FIELDS = ("undertow.text_config", "undertow.unet_config", "undertow.vae_config", "undertow.departure")
"""Of files that undertow writes; no names of Python."""

ATTRIBUTES = re.compile(r"undertow\.[a-z]+(\.[a-z]+)?")
"""Of spans, whole strings in this file."""
TRACES = "serving/tracing.py"

ROOMS = {
    "training": [verb for verb in LEAVES if verb[0] in ("train", "prune")],
    "engine/class_pictures.py": [("sample",)],
    "checkpoints/read/class_model.py": [("sample",)],
    "serving": [("serve",), ("worker",), ("keys", "add")],
    "export": [("export",)],
}
"""Whose messages only these commands show; what the other rooms say is meant for `undertow generate`."""

ELSEWHERE = {"--extra-index-url", "--upgrade", "--json", "--settings", "--child"}
"""Options of other programs: pip, curl, and `python -m undertow.serving.worker`."""


def arguments() -> set[str]:
    """The arguments of every public function, class and method."""
    found = (getattr(undertow, name) for name in undertow.__all__)
    public = [one for one in found if callable(one) and not (inspect.isclass(one) and issubclass(one, Exception))]
    methods = [method for one in public if inspect.isclass(one) for method in vars(one).values() if callable(method)]
    return {name for one in (*public, *methods) for name in inspect.signature(one).parameters}


def read_sentences() -> Iterator[tuple[str, str]]:
    """Every string that is no docstring, with its file; what is filled in while it runs stands as "X"."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("typer.Option", "Annotated")):
                skipped |= {id(one) for one in ast.walk(node)}
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(part) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
                yield path.relative_to(ROOT).as_posix(), "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.relative_to(ROOT).as_posix(), node.value


@cache
def sentences() -> list[tuple[str, str]]:
    """Those of all files, read where they are asked for: every process of the tests collects this module."""
    return sorted(set(read_sentences()))


def verb_of(words: str) -> tuple[str, ...] | None:
    """The longest beginning of some words that is a command, or a group of commands."""
    parts = tuple(words.split())
    known = {verb[:length] for verb in LEAVES for length in (1, 2)}
    return next((parts[:length] for length in (2, 1) if parts[:length] in known), None)


def verbs_of(file: str) -> list[tuple[str, ...]]:
    """The commands that show what a file says."""
    if file.startswith("cli/"):
        name = file.removeprefix("cli/").removesuffix(".py")
        own = [verb for verb in LEAVES if "_".join(verb) == name or verb[0] == name.partition("_")[0]]
        return [*own, ("generate",)] if own else list(LEAVES)  # what was made is drawn with next
    return next((verbs for room, verbs in ROOMS.items() if file.startswith(room)), [("generate",)])


def _is_attribute(file: str, sentence: str) -> bool:
    return file == TRACES and ATTRIBUTES.fullmatch(sentence) is not None


def advised() -> Iterator[tuple[str, str, str]]:
    """File, sentence and what is wrong with its advice."""
    known = arguments()
    for file, sentence in sentences():
        commands = list(COMMAND.finditer(sentence))
        for found in commands:
            if verb_of(found[1] or found[2]) is None:
                yield file, sentence, f"no command {found[0]}"
        for found in OPTION.finditer(sentence):
            before = [command for command in commands if command.start() < found.start()]
            named = verb_of(before[-1][1] or before[-1][2]) if before else None
            verbs = verbs_of(file) if named is None else [verb for verb in LEAVES if verb[: len(named)] == named]
            if found[0] not in ELSEWHERE | BEFORE_THE_VERB and not any(found[0] in OPTIONS[verb] for verb in verbs):
                yield file, sentence, f"no option {found[0]} of {verbs}"
        for found in FUNCTION.finditer("" if sentence in HEADER_FIELDS or _is_attribute(file, sentence) else sentence):
            if not (is_name(found[1]) if found[1] else found[2] in known):
                yield file, sentence, f"nothing is called {found[0]}"


def is_name(dotted: str) -> bool:
    if (ROOT / dotted).exists() or (ROOT / f"{dotted}.py").exists() or hasattr(undertow, dotted):
        return True
    room, _, name = dotted.rpartition(".")
    try:
        return hasattr(import_module(f"undertow.{room}"), name)
    except ImportError:
        return False


def test_what_is_advised_exists():
    assert not list(advised())


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("try --allow-pickles", "no option --allow-pickles"),
        ("look with `undertow inspect --rank`", "no option --rank"),
        ("see `undertow look`", "no command undertow look"),
        ("load it with `validate=False`", "nothing is called `validate="),
        ("call undertow.load_unets", "nothing is called undertow.load_unets"),
    ],
)
def test_advice_that_does_not_exist_would_be_found(sentence, problem, monkeypatch):
    monkeypatch.setitem(globals(), "sentences", lambda: [("errors.py", sentence)])
    assert [found.startswith(problem) for _, _, found in advised()] == [True]
