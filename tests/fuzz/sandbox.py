"""Runs command lines as a stranger would have them run, each in a child of this process with limits of time and memory.

The child is a fork of a process that has everything imported and has drawn before, so that a command line costs what it
does itself, and nothing that it breaks reaches the next one.
"""

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_CPU_S = 5.0
MOST_WALL_S = 90.0
"""Of a command that waits for something, on a machine that may be busy with other things."""

MOST_BYTES = 2**30
ADDRESS_SPACE_BYTES = 4 * 2**30
"""What a command may map beyond this process: enough to see by how much it passes `MOST_BYTES`, and no more."""

MODEL = "model"
"""The folder, beside a command's files, of an embedded model with some of its files replaced."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line and what lies in the folder that it is run in. files: contents by path. fifos: paths of pipes that
    nobody writes to. model: files of the embedded model in `MODEL` by path, with other contents, or removed; there is
    no such folder when `None`. loops: links, by path, to where they point."""

    arguments: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    fifos: tuple[str, ...] = ()
    model: Mapping[str, bytes | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """code: the exit code, negative for a signal; `None` for a command that was ended here. peak_bytes: resident
    memory, this process's own included. said: both outputs."""

    code: int | None
    cpu_s: float
    peak_bytes: int
    said: str

    @property
    def problem(self) -> str | None:
        """What no command may do, whatever its files; `None` if it did none of it."""
        if self.code is None:
            return f"did not end in {MOST_WALL_S:g} s"
        if self.code not in (0, 2):
            return f"exit code {self.code}"
        if self.cpu_s > MOST_CPU_S:
            return f"took {self.cpu_s:.1f} s of a processor"
        if self.peak_bytes > MOST_BYTES:
            return f"took {self.peak_bytes / 2**20:.0f} MB"
        if "\x1b" in self.said:
            return "wrote an escape sequence"
        if self.code == 2 and ("error: " not in self.said or "Traceback" in self.said):
            return "was refused without a sentence"
        return None


class Sandbox:
    """A folder for command lines, and a warm process to fork. To be closed."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="undertow-fuzz-"))
        self._model = self._root / "embedded"
        os.environ |= {"HF_HUB_OFFLINE": "1", "UNDERTOW_CONFIG": "", "XDG_CACHE_HOME": str(self._root / "cache")}
        self._warm()

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, case: Case) -> Outcome:
        """Runs a case in an empty folder, which is removed afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._root))
        try:
            self._prepare(case, folder)
            return self._watch(case.arguments, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _warm(self) -> None:
        """Imports what commands import, so that no child has to."""
        from undertow.cli.app import main
        from undertow.embedded import embedded_models

        shutil.copytree(embedded_models()["emoji"], self._model)
        picture, lora = self._root / "warm.png", self._model / "adapters" / "mosaic.safetensors"
        outputs = [os.dup(number) for number in (1, 2)]
        with (self._root / "warm.txt").open("w") as quiet:
            for number in (1, 2):
                os.dup2(quiet.fileno(), number)
            try:
                for line in (
                    f"generate apple --steps 1 --lora mosaic --out {picture} --no-show",
                    f"generate apple --steps 1 --adapter edges={picture} --out {self._root} --no-show",
                    f"inspect {picture}",
                    f"inspect {lora} --model emoji",
                    f"preprocess canny {picture} --out {self._root}/edges.png",
                ):
                    assert main(line.split()) == 0, line
            finally:
                for number, output in zip((1, 2), outputs, strict=True):
                    os.dup2(output, number)
                    os.close(output)

    def _prepare(self, case: Case, folder: Path) -> None:
        if case.model is not None:
            for file in self._model.rglob("*"):
                place = folder / MODEL / file.relative_to(self._model)
                if file.is_file() and str(file.relative_to(self._model)) not in case.model:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, place)
        replaced = {f"{MODEL}/{name}": content for name, content in (case.model or {}).items() if content is not None}
        for name, content in {**case.files, **replaced}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for name in case.fifos:
            os.mkfifo(folder / name)

    def _watch(self, arguments: Sequence[str], folder: Path) -> Outcome:
        with (folder / ".output").open("w+b") as output:
            pid = os.fork()
            if pid == 0:
                _become(arguments, folder, output.fileno())
            deadline = time.monotonic() + MOST_WALL_S
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            while not ended and time.monotonic() < deadline:
                time.sleep(0.002)
                ended, status, usage = os.wait4(pid, os.WNOHANG)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
            output.seek(0)
            return Outcome(
                code=os.waitstatus_to_exitcode(status) if ended else None,
                cpu_s=usage.ru_utime + usage.ru_stime,
                peak_bytes=usage.ru_maxrss * 1024,
                said=output.read().decode(errors="replace"),
            )


def _become(arguments: Sequence[str], folder: Path, output: int) -> None:
    """Turns this process, a fork, into the one that runs a command line; never returns."""
    code = 70
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for limit, most in (
            (resource.RLIMIT_AS, mapped + ADDRESS_SPACE_BYTES),
            (resource.RLIMIT_CPU, int(4 * MOST_CPU_S)),
            (resource.RLIMIT_FSIZE, MOST_BYTES),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (most, most))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        if Path("undertow.toml").exists():
            os.environ["UNDERTOW_CONFIG"] = "undertow.toml"
        from undertow.cli.app import main

        code = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
