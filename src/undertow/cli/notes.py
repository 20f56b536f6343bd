"""What a command has to say besides its result, said once it is clear that nothing is refused.

The rule for options that were typed and cannot act, here and for settings of requests (`engine.idle`): they are noted
and the rest is done, because presets, lines of a file and commands that are typed again carry such options along. What
contradicts itself is refused.
"""

from collections.abc import Mapping

from rich.console import Console

from undertow.cli.terminal import SafeConsole


class Notes:
    """Sentences in the order in which they came up, each once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Keeps a sentence."""
        if line not in self._lines:
            self._lines.append(line)

    def add_idle(self, typed: Mapping[str, bool], where: str) -> None:
        """Keeps which of these options were typed for nothing. typed: by option, whether it was. where: they have no
        effect, in words."""
        idle = [option for option, given in typed.items() if given]
        if idle:
            self.add(f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect {where}")

    def tell(self, console: Console) -> None:
        """Prints and forgets them."""
        for line in self._lines:
            console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
        self._lines.clear()


def note_idle(typed: Mapping[str, bool], where: str) -> None:
    """`Notes.add_idle`, said at once on standard error."""
    notes = Notes()
    notes.add_idle(typed, where)
    if any(typed.values()):
        notes.tell(SafeConsole(stderr=True))
