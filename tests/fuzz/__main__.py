"""`make fuzz`: command lines of strangers for ten minutes, each in a sandbox; fails if one does what none may do.

python -m tests.fuzz --minutes 10 --results docs/results/robustness.md
python -m tests.fuzz --examples 10        # the same ones each time, as in the tests
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch: threads do not survive a fork

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.crafted import ENTRIES
from tests.fuzz.sandbox import MOST_BYTES, MOST_CPU_S, Case, Sandbox
from tests.fuzz.strategies import KINDS

ROUND = 20
"""Examples of one kind before the next one has its turn."""

FOUND = Path("out/fuzz")


@dataclass(kw_only=True)
class Tally:
    """What became of the command lines of one kind. problems: by what was wrong, the arguments of each."""

    done: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    largest_bytes: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def run(sandbox: Sandbox, case: Case, tally: Tally) -> None:
    """Runs one case, and keeps it with its files if it did what none may do."""
    outcome = sandbox.run(case)
    tally.done += outcome.code == 0
    tally.refused += outcome.code == 2
    tally.slowest_s = max(tally.slowest_s, outcome.cpu_s)
    tally.largest_bytes = max(tally.largest_bytes, outcome.peak_bytes)
    if outcome.problem is not None:
        said = outcome.said.strip().splitlines()
        tally.problems.append((f"{outcome.problem}: {said[-1] if said else ''}", repr(case)))


def draw(sandbox: Sandbox, kind: str, tally: Tally, examples: int, number: int | None) -> None:
    """Runs so many examples of a kind. number: of the seed; the same ones each time when `None`."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def examine(case: Case) -> None:
        run(sandbox, case, tally)

    chosen: Callable[[], None] = examine if number is None else seed(number)(examine)
    chosen()


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--examples", type=int, help="Of each kind, the same ones each time, in place of minutes.")
    options.add_argument(
        "--crafted", type=Path, help="Write what the crafted command lines say as JSON, and run these."
    )
    options.add_argument("--results", type=Path, help="Markdown file that the counts are written into.")
    options.add_argument("--kind", choices=sorted(KINDS), action="append")
    given_ = options.parse_args()
    kinds, began = given_.kind or list(KINDS), time.monotonic()
    tallies = {kind: Tally() for kind in kinds}
    sandbox = Sandbox()
    try:
        if given_.crafted is not None:
            outcomes = {name: sandbox.run(case) for name, (case, _) in ENTRIES.items()}
            given_.crafted.write_text(
                json.dumps({name: {**asdict(one), "problem": one.problem} for name, one in outcomes.items()})
            )
        if given_.examples is not None:
            for kind in kinds:
                draw(sandbox, kind, tallies[kind], given_.examples, None)
        else:
            while time.monotonic() - began < 60 * given_.minutes:
                for kind in kinds:
                    draw(sandbox, kind, tallies[kind], ROUND, random.randrange(2**32))
    finally:
        sandbox.close()
    for kind, tally in tallies.items():
        print(f"{kind:10} {tally.done:5} done {tally.refused:5} refused {tally.slowest_s:5.1f} s", end=" ")
        print(f"{tally.largest_bytes / 2**20:5.0f} MB {len(tally.problems):3} problems")
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    for number, (problem, case) in enumerate(problems):
        FOUND.mkdir(parents=True, exist_ok=True)
        (FOUND / f"{number}.txt").write_text(f"{problem}\n{case}\n")
        print(f"{problem}\n    {case[:300]}")
    if given_.results is not None:
        write(given_.results, tallies, (time.monotonic() - began) / 60)
    return 1 if problems else 0


def write(place: Path, tallies: dict[str, Tally], minutes: float) -> None:
    """Replaces the table of the results' page, and the sentence above it."""
    rows = [
        f"| {kind} | {tally.done + tally.refused + len(tally.problems):,} | {tally.done:,} | {tally.refused:,} | "
        f"{len(tally.problems)} | {tally.slowest_s:.1f} s | {tally.largest_bytes / 2**20:.0f} MB |"
        for kind, tally in tallies.items()
    ]
    total = sum(tally.done + tally.refused + len(tally.problems) for tally in tallies.values())
    begin, end = "<!-- counts -->", "<!-- end of counts -->"
    text = place.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    said = (
        f"{total:,} command lines in {minutes:.0f} minutes on {datetime.now(UTC):%d %B %Y} ({platform.machine()}, one "
        f"thread, Python {platform.python_version()}); a problem is an exit code other than 0 and 2, more than "
        f"{MOST_CPU_S:g} s of a processor, more than {MOST_BYTES / 2**30:g} GiB of memory, or an escape sequence."
    )
    table = (
        "| Kind | Command lines | Done | Refused in a sentence | Problems | Slowest | Most memory |\n"
        + "|---" * 7
        + "|"
    )
    place.write_text(f"{head}{begin}\n\n{said}\n\n{table}\n" + "\n".join(rows) + f"\n\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
