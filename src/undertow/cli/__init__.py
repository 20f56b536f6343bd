"""The command line, one file a verb. Importing it imports neither torch nor the verbs: an interruption while those are
imported is answered like any other."""

import sys
from collections.abc import Sequence
from typing import Any

INTERRUPTED = 130

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, *verbs: Any, **settings: Any) -> int:
    """Runs one command line, the process's own when `None`, and returns its exit code: `undertow.cli.app.main`."""
    try:
        from undertow.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return INTERRUPTED
    return run(arguments, *verbs, **settings)
