"""What holds for every test."""

import gc
import os
import random
import subprocess
import tempfile
import zlib

import pytest
from hypothesis import settings

from tests.forked import FORKED

IN_CI = bool(os.environ.get("CI"))

# Speed is measured in benchmarks/, never asserted: on a busy machine any example may take long. In CI the same examples
# each time; new ones are for developers, who can keep what they find.
settings.register_profile("undertow", deadline=None, derandomize=IN_CI)
settings.load_profile("undertow")


def pytest_addoption(parser):
    parser.addoption(
        "--check-annotations",
        action="store_true",
        help="check every annotation of undertow and of the recipes; torch.compile cannot trace the checks",
    )


def pytest_configure(config):
    """What the user measured on this machine decides nothing here: tests have a cache of their own."""
    cache = tempfile.TemporaryDirectory(prefix="undertow-tests-")
    os.environ["UNDERTOW_CACHE"] = cache.name
    config.add_cleanup(cache.cleanup)
    hands_out = bool(config.getoption("tx", None)) and not hasattr(config, "workerinput")
    if config.getoption("check_annotations") and not hands_out:  # that process runs no tests, and need not import torch
        from tests.annotations import check_annotations

        check_annotations("undertow", "recipes")


def pytest_collection_finish():
    """What is there now stays: no collection of garbage has to look through it again."""
    gc.collect()
    gc.freeze()


def seed_all(name: str) -> None:
    """Every source of random numbers, by a name."""
    import numpy as np
    import torch

    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """What tests share is seeded by its own name, not by the test that happens to ask for it first."""
    if fixturedef.scope != "function":
        seed_all(f"{fixturedef.baseid}::{fixturedef.argname}[{getattr(request, 'param', '')}]")
    return (yield)


@pytest.fixture(autouse=True)
def _seeded(request):
    """A test's random numbers depend on its name alone: not on its order, nor on the worker that stole it."""
    seed_all(request.node.nodeid)


PICKLED = "undertow.checkpoints.files.pickled.subprocess"


@pytest.fixture(scope="session", autouse=True)
def _forks_read_pickles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PICKLED, FORKED)
        yield


@pytest.fixture
def new_processes(monkeypatch):
    """Pickles are read as they are outside of tests: by a program in a process of its own."""
    monkeypatch.setattr(PICKLED, subprocess)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return failed_in_ci(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return failed_in_ci(report)


def failed_in_ci(report):
    """In CI everything that tests need is installed: what is skipped there protects nothing."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; in CI nothing is skipped: install what it needs, or do not collect it"
    return report
