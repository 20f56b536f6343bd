"""What verbs print to. Names, metadata and prompts come from strangers: shown, they are text and nothing else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from undertow.cli.visible import visible


class SafeConsole(Console):
    """rich's console, but `:cat:` stays as it is, and control characters in text are shown. rich's own control codes (a
    bar that is drawn again) are not text, and stay."""

    def __init__(self, **options: Any):
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Before anything is measured, so that tables have room for what is written out."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def tell_written(console: Console, *places: Path | None) -> None:
    """Says which files were written beside those that a verb is asked for; `None` for one that was not."""
    for place in places:
        if place is not None:
            console.print(f"wrote {place}", markup=False, highlight=False, soft_wrap=True)
