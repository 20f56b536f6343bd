"""A diagnosis in the terminal."""

from collections import Counter
from textwrap import fill
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from undertow.lookup import counted

if TYPE_CHECKING:
    from undertow.inspection.doctor.finding import Diagnosis, Finding

COLORS = {"serious": "bold red", "warning": "yellow", "note": "cyan"}
WIDTH = 100
"""Characters of a line of text, at most."""


def show_diagnosis(console: Console, found: "Diagnosis") -> None:
    """Prints the findings, and what could not be looked at."""
    for finding in found.findings:
        _show(console, finding)
    if found.skipped:
        reasons = Counter(found.skipped.values())
        parts = (f"{counted(count, 'rule')}, because {why}" for why, count in reasons.items())
        console.print(Text(f"not looked at: {'; '.join(parts)} (--json names them)"), highlight=False, soft_wrap=True)
    console.print(Text(_summary(found)), highlight=False)


def _show(console: Console, finding: "Finding") -> None:
    place = f" in {finding.module}" if finding.module else ""
    console.print(Text(f"{finding.severity}: {finding.rule}{place}", style=COLORS[finding.severity]), soft_wrap=True)
    for name in ("symptom", "evidence", "cause", "fix", "prevention"):
        first, rest = f"  {name + ':':<12}", " " * 14
        text = fill(
            getattr(finding, name),
            min(WIDTH, console.width) if console.is_terminal else WIDTH,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,  # paths and options stay whole, so that they can be copied
            break_on_hyphens=False,
        )
        console.print(Text(text), highlight=False, soft_wrap=True)
    console.print()


def _summary(found: "Diagnosis") -> str:
    asked = counted(len(found.rules) - len(found.skipped), "rule")
    if not found.findings:
        return f"{asked} found nothing wrong"
    severities = Counter(one.severity for one in found.findings)
    counts = (f"{count} serious" if name == "serious" else counted(count, name) for name, count in severities.items())
    return f"{asked} asked: {', '.join(counts)}"
