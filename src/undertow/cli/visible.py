"""Text of strangers, so that a terminal shows it and does not obey it."""

import re

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that move the cursor, color what follows, ring, or turn the direction of writing; not tab and newline."""


def visible(text: str) -> str:
    """The text with control characters written out as Python's escapes."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
