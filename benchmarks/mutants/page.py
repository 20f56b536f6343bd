"""The page of the scores: what is in out/mutants, room by room."""

import json
import platform
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HEAD = """# Tests

    make mutants ROOMS="{rooms}" COUNT={count} SEED={seed}

One change at a time is made to a room's code, and the room's tests are asked whether they notice. The changes are
mutmut's: an operator or a number is another, an argument is `None` or missing, an assigned value is `None`, a branch is
always or never taken, a `case` is missing, a string is another. Left out are annotations, decorators, imports, `raise`
and `assert` with what they say, docstrings, strings with a space in them (messages) and `__all__`. Each room's sample
is random, the same for the same seed. A mutant meets the tests of its room that execute its line (with annotations
checked, as in `make test`); it is killed when one fails, or when it takes far more time than they took before. What no
test executes counts as not killed. `unet` and `nn` also have the golden tests of the U-Net, `sampling` and `diffusion`
those of the samplers and schedulers, `engine` those of the pipelines.

{date}, {machine}; Python {python}, torch {torch}, mutmut {mutmut}, pytest {pytest}.

"""


@dataclass(frozen=True, kw_only=True)
class Room:
    name: str
    possible: int
    seed: int
    tried: list[dict[str, Any]]

    @staticmethod
    def load(path: Path) -> "Room":
        head, *tried = (json.loads(line) for line in path.read_text().splitlines())
        return Room(name=head["room"], possible=head["possible"], seed=head["seed"], tried=tried)


def write_page(out: Path, page: Path, order: list[str]) -> None:
    stored = {path.stem: Room.load(path) for path in out.glob("*.jsonl")}
    rooms = [stored[name] for name in order if name in stored and stored[name].tried]
    everything = [one for room in rooms for one in room.tried]
    head = HEAD.format(
        rooms=" ".join(room.name for room in rooms),
        count=max(len(room.tried) for room in rooms),
        seed=rooms[0].seed,
        date=max(one["date"] for one in everything),
        machine=f"{platform.machine()} ({cpu()})",
        python=platform.python_version(),
        torch=torch.__version__,
        mutmut=version("mutmut"),
        pytest=version("pytest"),
    )
    lines = ["| room | possible | tried | killed | survived | not covered | score |", "|---|---|---|---|---|---|---|"]
    lines += [row(f"{room.name} | {room.possible}", room.tried) for room in rooms]
    lines += ["", "By what was changed:", ""]
    lines += ["| | tried | killed | survived | not covered | score |", "|---|---|---|---|---|---|"]
    lines += [
        row(kind, [one for one in everything if one["kind"] == kind])
        for kind in sorted({one["kind"] for one in everything})
    ]
    for room in rooms:
        alive = [one for one in room.tried if one["outcome"] in ("survived", "not covered")]
        if alive:
            lines += ["", f"## What survived in `{room.name}`", ""]
            lines += [survivor(one) for one in sorted(alive, key=lambda one: (one["file"], one["line"]))]
    page.write_text(head + "\n".join(lines) + "\n")


def row(name: str, tried: list[dict[str, Any]]) -> str:
    outcomes = Counter(one["outcome"] for one in tried)
    killed = outcomes["killed"] + outcomes["timed out"]
    score = f"{killed / len(tried):.1%}".replace("%", " %")
    return f"| {name} | {len(tried)} | {killed} | {outcomes['survived']} | {outcomes['not covered']} | {score} |"


def survivor(one: dict[str, Any]) -> str:
    """A line of the list: code in double backticks, for it may hold single ones."""
    note = ", which no test executes" if one["outcome"] == "not covered" else ""
    return f"- `{one['file'].removeprefix('src/undertow/')}:{one['line']}`{note}: `` {one['change']} ``"


def cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
