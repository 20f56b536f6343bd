"""Extracts tensors from a pickle (.ckpt, .pt, .bin) in a separate process, without executing its code.

`torch.load(weights_only=True)` builds only tensors and plain containers. The official SD1 files also name one class of
their trainer, pytorch_lightning's ModelCheckpoint, and the first textual inversions torch's ParameterDict; exactly
these names get stand-ins that do nothing and keep tensors. The tensors are written to
a temporary safetensors file, and only that file is read here.
"""

import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from undertow.checkpoints.files.sniff import PICKLE_REMEDY, sniff
from undertow.errors import UnsafeFile
from undertow.limits import PICKLE_RATIO, TENSORS, Limit

TIMEOUT_S = 1800

LIMITS: Mapping[int, Limit] = {3: TENSORS, 4: PICKLE_RATIO}
"""By exit code of the process, which `unpickle.py` names, the limit that the file passed."""

FREE_BYTES = 2**20
"""That a pickle's tensors may always have, however small the file is."""


@contextmanager
def as_safetensors(path: Path) -> Generator[Path]:
    """Yields a temporary safetensors file with the tensors of a pickle.

    Errors: `UnsafeFile` when the pickle contains anything but tensors; none of its code has run.
    """
    with tempfile.TemporaryDirectory(prefix="undertow-") as folder:
        target = Path(folder) / f"{path.stem}.safetensors"
        # -I: neither the working folder nor environment variables can put other modules in place of torch.
        most = str(TENSORS.most), str(FREE_BYTES + PICKLE_RATIO.most * path.stat().st_size)
        command = [sys.executable, "-I", str(Path(__file__).with_name("unpickle.py")), str(path), str(target), *most]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as err:
            raise UnsafeFile(path, f"this pickle was not read within {TIMEOUT_S} s", PICKLE_REMEDY) from err
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        if done.returncode in LIMITS:
            raise UnsafeFile(path, f"this pickle was not read: {reason}", LIMITS[done.returncode].remedy)
        if done.returncode != 0 or not target.is_file():
            raise UnsafeFile(path, f"this pickle holds more than tensors and was not read ({reason})", "do not use it")
        yield target


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle as torch writes them, judged by its first bytes."""
    return path.is_file() and sniff(path) == "pickle"
