"""What verbs print to. Names, metadata and prompts come from strangers: shown, they are text and nothing else."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that move the cursor, color what follows, ring, or turn the direction of writing; not tab and newline."""


def visible(text: str) -> str:
    """The text with control characters written out as Python's escapes."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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
