"""`--prompts FILE`: many prompts from a file, one a line, with options of their own.

    red apple on white background
    owl on pink background | --steps 30 --seed 7          options as on the command line, behind the last `|`
    {"prompt": "rocket", "steps": 30, "seed": 7}          or JSON with the fields of a request

Blank lines and those that begin with # are skipped. What a line says replaces what the command line says.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from undertow.cli.request_options import with_request_options
from undertow.cli.seeds import random_seed
from undertow.cli.task import Task, new_task
from undertow.engine.request import MAX_SEED, GenerationRequest
from undertow.errors import InvalidInput
from undertow.limits import TEXT_BYTES

MOST_LINES = 10_000

JSON_LINES = 'a line for each picture, such as {"prompt": "...", "seed": 7}'

_OPTIONS = re.compile(r"\|\s*(?=--?[A-Za-z])")


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """options: as typed behind the prompt. fields: of JSON, but for the prompt."""

    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeded(self) -> bool:
        """Whether it has a seed of its own."""
        return "seed" in self.options or "seed" in self.fields

    def task(self, options: Mapping[str, Any]) -> Task:
        """options: those of the command line. Errors: `InvalidInput`."""
        task = new_task(self.prompt, {**options, **self.options})
        if not self.fields:
            return task
        own = GenerationRequest.from_json({"prompt": self.prompt, **self.fields})
        request = replace(task.request, **{name: getattr(own, name) for name in self.fields})
        return Task(request=request, indices=range(request.count), given=task.given | frozenset(self.fields))


def tasks_of_file(path: Path, options: Mapping[str, Any]) -> list[Task]:
    """A task for each line. Lines without a seed have the command line's, or follow one another from a random one.

    Errors: `InvalidInput` names the line.
    """
    seed, tasks = random_seed(), []
    for number, text in _lines(path):
        try:
            line = _read(text)
            given = options if "seed" in options or line.seeded else {**options, "seed": str(seed % MAX_SEED)}
            task = line.task(given)
        except InvalidInput as err:
            raise InvalidInput(f"{path}, line {number}: {err.argument}", err.value, err.expected, err.remedy) from err
        seed += task.request.count
        tasks.append(task)
    if not tasks:
        raise InvalidInput("--prompts", str(path), "a file with a prompt on each line", "it has none")
    return tasks


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise InvalidInput("--prompts", str(path), "a text file", "there is no such file")
    TEXT_BYTES.require("--prompts", path.stat().st_size, f"{path} of {path.stat().st_size:,} bytes")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise InvalidInput("--prompts", str(path), "UTF-8 text", str(err)) from err
    _require_lines(path, lines)
    found = [
        (number, line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(found) > MOST_LINES:
        raise InvalidInput("--prompts", f"{path} with {len(found):,} prompts", f"at most {MOST_LINES:,}", "divide it")
    return found


def _require_lines(path: Path, lines: Sequence[str]) -> None:
    """Errors: `InvalidInput` for one JSON document over many lines, whose brackets would be drawn."""
    written = [line.strip() for line in lines if line.strip()]
    if len(written) > 1 and written[0][0] in "[{" and written[-1][-1] in "]}" and _json("\n".join(written)) is not None:
        raise InvalidInput("--prompts", str(path), JSON_LINES, "it is one JSON document over many lines")


def _json(text: str) -> Any:
    """What a text is as JSON; `None` for other texts."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(text: str) -> PromptLine:
    if text.startswith("[") and any(isinstance(one, str | dict) for one in _json(text) or ()):
        raise InvalidInput("JSON", repr(text[:40]), JSON_LINES, "this is a list")
    if text.startswith("{"):
        fields = _json(text)  # a prompt may begin with choices in braces
        if isinstance(fields, dict):
            if not isinstance(fields.get("prompt"), str):
                raise InvalidInput("prompt", repr(fields.get("prompt")), "a text", 'write {"prompt": "...", ...}')
            return PromptLine(prompt=fields.pop("prompt"), fields=fields)
        if text.startswith('{"'):
            raise InvalidInput("JSON", repr(text[:40]), 'one whole object on the line, {"prompt": "...", ...}')
    marks = list(_OPTIONS.finditer(text))
    if not marks:
        return PromptLine(prompt=text)
    return PromptLine(prompt=text[: marks[-1].start()].strip(), options=_typed(text[marks[-1].end() :]))


def _typed(text: str) -> dict[str, Any]:
    """Options of a request, read as the command line reads them. Errors: `InvalidInput`."""
    found: dict[str, Any] = {}

    def keep(**options: Any) -> None:
        found.update(options)

    app = typer.Typer(add_completion=False)
    app.command(add_help_option=False)(with_request_options(keep))
    try:
        typer.main.get_command(app).main(shlex.split(text), standalone_mode=False)
    except typer.TyperException as error:
        expected = f"options of a request ({error.format_message().rstrip('.')})"
        raise InvalidInput(
            "what follows |", repr(text[:60]), expected, "as undertow generate --help has them"
        ) from error
    except ValueError as error:  # quotes that do not pair
        raise InvalidInput("what follows |", repr(text[:60]), "options with quotes in pairs", str(error)) from error
    return found
