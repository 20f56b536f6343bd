"""Help of a verb: options in groups, each with its meaning beside it, or below where it is long. Nothing is cut."""

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

ARGUMENTS, OPTIONS = "Arguments", "Options"


class VerbCommand(TyperCommand):
    """A verb whose help fits terminals of 80 columns: the plain layout, not rich's tables of five columns."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes usage, description and options; called by typer."""
        super(TyperCommand, self).format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the groups in the order of their first options; called by typer."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                plain = ARGUMENTS if parameter.param_type_name == "argument" else OPTIONS
                panel = getattr(parameter, "rich_help_panel", None)
                label, meaning = record
                groups.setdefault(panel or plain, []).append((label, meaning.replace("`", "'")))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def with_plain_help(group: typer.Typer) -> typer.Typer:
    """The group, with this help for each of its verbs."""
    for command in _commands(group):
        command.cls = VerbCommand
    return group


def _commands(group: typer.Typer) -> Sequence[Any]:
    inner = [each.typer_instance for each in group.registered_groups if each.typer_instance is not None]
    return [*group.registered_commands, *(command for each in inner for command in _commands(each))]
