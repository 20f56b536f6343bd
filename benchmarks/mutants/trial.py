"""Trials: each mutant in a process of its own, forked from one that has imported what takes long.

Most mutants change the body of a function. Those are forked from a process that has imported undertow and collected the
tests; the child gives the function its new code. Where a statement runs while modules are imported, the child imports
them itself, which takes seconds.
"""

import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from .mutations import Mutant
from .selection import Selection

CONTROL = "control"
"""The kind of a mutant that changes nothing."""

MEMORY_BYTES = 8 * 2**30
"""What a mutant may reserve beyond what its parent had: some ask for tensors of any size."""

KILLER, OUTPUT = Path("killer.txt"), Path("output.txt")
"""In the copy of the tree: the test that failed, and what was printed."""

Record = Callable[[Mutant, str, str], None]
"""Takes a mutant, its outcome and the test that killed it."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all trials of a room share. They run in a copy of the tree, which is the current folder."""

    options: list[str]
    """Pytest's."""
    tests: list[str]
    """Files and folders."""
    selection: Selection
    original: Path
    """The root of an unchanged copy."""
    record: Record


def try_all(mutants: list[Mutant], room: Room) -> None:
    """undertow must not be imported yet in this process."""
    covered: list[Mutant] = []
    for mutant in mutants:
        if room.selection.tests(mutant):
            covered.append(mutant)
        else:
            room.record(mutant, "not covered", "")
    if not covered:
        return
    control = unchanged(min(covered, key=lambda mutant: len(room.selection.tests(mutant))), room.original)
    slow = Path("slow.json")
    slow.write_text(json.dumps([mutant.key for mutant in covered]))
    child = os.fork()
    if child == 0:
        try:
            pytest.main([*room.options, "-q", *room.tests], plugins=[_Trials([control, *covered], room, slow)])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    left = set(json.loads(slow.read_text()))
    if left:
        _try_importing(control, room)
    for mutant in covered:
        if mutant.key in left:
            _try_importing(mutant, room)


def unchanged(mutant: Mutant, original: Path) -> Mutant:
    """What must survive in its place, or killing shows nothing."""
    source = (original / mutant.file).read_text() + "\n# unchanged\n"
    return replace(mutant, kind=CONTROL, change="nothing", source=source)


def _try_importing(mutant: Mutant, room: Room) -> None:
    tests = room.selection.tests(mutant)
    files = sorted({test.split("::")[0] for test in tests})

    def run() -> int:
        return int(pytest.main([*room.options, "-q", "-x", *files], plugins=[_Chosen(tests)]))

    with on_disk(mutant, room.original):
        outcome = forked(run, limit(room.selection, tests))
    room.record(mutant, outcome, killer())


def limit(selection: Selection, tests: list[str]) -> float:
    """Seconds of processor time, of which importing takes a few."""
    return 30 + 4 * sum(selection.seconds[test] for test in tests)


def killer() -> str:
    return KILLER.read_text() if KILLER.exists() else ""


def forked(run: Callable[[], int], seconds: float) -> str:
    """What became of a mutant that `run` tries in a child: survived, killed or timed out."""
    KILLER.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _restrict(seconds)
            code = run()
        finally:
            os._exit(code)
    # Other work on the machine must not kill a mutant: the limit is on processor time, that on time itself is wide.
    deadline = time.monotonic() + 10 * seconds
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(ended[1])
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timed out"
    return "killed" if code else "survived"


def _restrict(seconds: float) -> None:
    output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@contextmanager
def on_disk(mutant: Mutant, original: Path) -> Generator[None]:
    """The old file comes back with its old time, so that its compiled form is valid again."""
    Path(mutant.file).write_text(mutant.source)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        shutil.copy2(original / mutant.file, mutant.file)


class _Reporting:
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not KILLER.exists():
            KILLER.write_text(report.nodeid)


class _Chosen(_Reporting):
    """Runs the chosen tests, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self.rank]
        if chosen:  # a mutant may change the names of tests
            items[:] = sorted(chosen, key=lambda item: self.rank[item.nodeid])


class _Trials(_Reporting):
    """Once the tests are collected, forks for each mutant that new code in functions can express."""

    def __init__(self, mutants: list[Mutant], room: Room, slow: Path) -> None:
        self.mutants, self.room, self.slow = mutants, room, slow

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = by_code(Path.cwd() / "src")
        gc.freeze()
        left = {mutant.key for mutant in self.mutants if mutant.kind != CONTROL}
        for mutant in self.mutants:
            slow = mutant.kind != CONTROL and self.room.selection.imported(mutant)
            swaps = None if slow else new_code(mutant, self.room.original)
            if swaps is None or not all(old in functions for old, _ in swaps):
                continue
            tests = self.room.selection.tests(mutant)
            run = partial(_run_with, session, [items[test] for test in tests], functions, swaps)
            with on_disk(mutant, self.room.original):
                outcome = forked(run, limit(self.room.selection, tests))
            self.room.record(mutant, outcome, killer())
            left.discard(mutant.key)
            self.slow.write_text(json.dumps(sorted(left)))
        return True


Swaps = list[tuple[CodeType, CodeType]]
Functions = dict[CodeType, list[FunctionType]]


def _run_with(session: pytest.Session, items: list[pytest.Item], functions: Functions, swaps: Swaps) -> int:
    for old, new in swaps:
        for function in functions[old]:
            function.__code__ = new
    for item, following in zip(items, [*items[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def by_code(folder: Path) -> Functions:
    found: Functions = defaultdict(list)
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename.startswith(str(folder)):
            found[one.__code__].append(one)
    return dict(found)


def new_code(mutant: Mutant, original: Path) -> Swaps | None:
    """The functions' old code with the new; None where more than bodies of functions has changed."""
    module = sys.modules.get(mutant.file.removeprefix("src/").removesuffix(".py").replace("/", "."))
    if module is None or module.__spec__ is None:
        return None
    loader: Any = module.__spec__.loader
    path = str(Path.cwd() / mutant.file)
    old = loader.source_to_code((original / mutant.file).read_bytes(), path)
    return swaps_between(old, loader.source_to_code(mutant.source.encode(), path))


def swaps_between(old: CodeType, new: CodeType) -> Swaps | None:
    inner = [(one, two) for one, two in zip(old.co_consts, new.co_consts, strict=False) if isinstance(one, CodeType)]
    if _shell(old) != _shell(new):
        return None
    swaps: Swaps = []
    for one, two in inner:
        if one == two:
            continue
        if one.co_flags & OPTIMIZED:
            if one.co_freevars != two.co_freevars:
                return None
            swaps.append((one, two))
        elif (deeper := swaps_between(one, two)) is None:
            return None
        else:
            swaps += deeper
    return swaps


OPTIMIZED = 1
"""The flag of the code of functions, which that of classes and modules lacks (inspect.CO_OPTIMIZED)."""


def _shell(code: CodeType) -> CodeType:
    """The code without the functions and classes that it defines."""
    return code.replace(co_consts=tuple(type(one) if isinstance(one, CodeType) else one for one in code.co_consts))
