"""Options that were typed and cannot act.

The rule, here and for settings of requests (`engine.idle`): what cannot act is noted and the rest is done, because a
preset, a line of a file and a command that is typed again carry such options along; what contradicts itself is
refused.
"""

from collections.abc import Mapping

from undertow.cli.terminal import SafeConsole


def note_idle(typed: Mapping[str, bool], where: str) -> None:
    """Says which of these options were typed for nothing. typed: by option, whether it was. where: they have no effect,
    in words."""
    idle = [option for option, given in typed.items() if given]
    if idle:
        note = f"note: {' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect {where}"
        SafeConsole(stderr=True, soft_wrap=True).print(note, markup=False, highlight=False)
