"""The command line, one file a verb. Importing it imports no torch: `undertow --help` answers at once."""

from undertow.cli.app import main

__all__ = ["main"]
