"""Programs that tests run in forks of this process, which has imported torch already: a second of a processor each.

`undertow.checkpoints.files.pickled` reads every pickle in a new process. What that process does is what most tests ask
about, and is the same in a fork; a test that asks about the process itself takes the fixture `new_processes`.
"""

import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from types import SimpleNamespace


def run(command: Sequence[str], **how: object) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run` of `python -I PROGRAM ARGUMENTS`, with its output captured as text."""
    _interpreter, _isolated, program, *arguments = command
    with tempfile.TemporaryFile("w+b") as output:
        pid = os.fork()
        if pid == 0:
            _become(program, arguments, output.fileno())
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), stdout="", stderr=said)


FORKED = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
"""In place of the module `subprocess`."""


def _become(program: str, arguments: Sequence[str], output: int) -> None:
    """Turns this process, a fork, into one that runs the program; never returns."""
    code = 70
    try:
        os.dup2(output, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        warnings.simplefilter("ignore")  # this process may make errors of them
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
        if isinstance(stopped.code, str):
            sys.stderr.write(stopped.code)
    finally:
        sys.stderr.flush()
        os._exit(code)
