"""Which tests execute which line, from one run of a room's tests under coverage."""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

from .mutations import Mutant

FEW = 10

IMPORTED = ""
"""The context of what runs while modules and tests are imported."""


@dataclass(frozen=True)
class Selection:
    contexts: dict[str, dict[int, list[str]]]
    """For each file and line, the tests and shared fixtures that execute it."""
    used: dict[str, list[str]]
    """The shared fixtures of each test."""
    seconds: dict[str, float]
    """Of processor time, for each test, in the order of the run."""

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that can notice it, those that execute the line first, the fastest first; none if nothing does.

        What is executed by an import (a default, a table) or by few tests (which may share what it made with others)
        can be noticed by whatever executes its file, and if nothing does (a file of constants) by any test.
        """
        lines = self.contexts.get(mutant.file, {})
        found = {context for line in self._range(mutant) for context in lines.get(line, ())}
        if not found:
            return []
        chosen = self._of(found)
        if IMPORTED in found or len(chosen) < FEW:
            chosen += [test for test in self._of(set().union(*lines.values())) if test not in set(chosen)]
        return chosen or self._of(set(self.seconds))

    def _of(self, contexts: set[str]) -> list[str]:
        chosen = [test for test in self.seconds if test in contexts or not contexts.isdisjoint(self.used[test])]
        return sorted(chosen, key=self.seconds.__getitem__)

    def imported(self, mutant: Mutant) -> bool:
        """Whether the statement runs while modules are imported: then they must be imported again."""
        lines = self.contexts.get(mutant.file, {})
        return any(IMPORTED in lines.get(line, ()) for line in self._range(mutant))

    def _range(self, mutant: Mutant) -> range:
        return range(mutant.lines[0], mutant.lines[1] + 1)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"contexts": self.contexts, "used": self.used, "seconds": self.seconds}))

    @staticmethod
    def load(path: Path) -> "Selection":
        stored = json.loads(path.read_text())
        contexts = {
            file: {int(line): names for line, names in lines.items()} for file, lines in stored["contexts"].items()
        }
        return Selection(contexts, stored["used"], stored["seconds"])


def measure(arguments: list[str], folder: str) -> Selection:
    """Runs the tests, which must pass, in this process; undertow must not be imported yet."""
    coverage = Coverage(data_file=None, include=[f"{folder}/*"], config_file=False)
    plugin = _Contexts(coverage)
    coverage.start()
    code = pytest.main([*arguments, "-q"], plugins=[plugin])
    coverage.stop()
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"the tests of {folder} must pass before mutants are made, pytest returned {code}")
    data, here = coverage.get_data(), Path.cwd()
    contexts = {
        str(Path(file).relative_to(here)): data.contexts_by_lineno(file) for file in sorted(data.measured_files())
    }
    return Selection(contexts, plugin.used, plugin.seconds)


@dataclass(eq=False)
class _Contexts:
    coverage: Coverage
    used: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    current: list[str] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        started = time.process_time()
        with self._context(item.nodeid):
            result = yield
        self.seconds[item.nodeid] = time.process_time() - started
        self.used[item.nodeid] = [f"fixture {name}" for name in getattr(item, "fixturenames", ())]
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        with self._context(f"fixture {fixturedef.argname}"):
            return (yield)

    @contextmanager
    def _context(self, name: str) -> Generator[None]:
        self.current.append(name)
        self.coverage.switch_context(name)
        yield
        self.current.pop()
        self.coverage.switch_context(self.current[-1] if self.current else "teardown")
