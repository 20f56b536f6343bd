"""What every prompt must be, whoever reads it: text of a size that is read at once."""

import os

from undertow.errors import InvalidInput

MAX_PROMPT_BYTES = 16 * 1024
"""Longest prompt, in UTF-8: some 3,000 words, or 40 chunks for the text encoder."""

LIMIT = "UNDERTOW_MAX_PROMPT_BYTES"
"""The environment variable that replaces `MAX_PROMPT_BYTES`."""


def require_prompt(name: str, text: object) -> None:
    """Refuses what cannot be a prompt. name: what the error calls it.

    Errors: `InvalidInput` for what is not text, for characters that are half of a pair (lone surrogates), which no
    encoder takes, and for text that is too long.
    """
    if not isinstance(text, str):
        raise InvalidInput(name, repr(text), "text; it may be empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as err:
        place = f"not Unicode at character {err.start}"
        raise InvalidInput(name, place, "text", "remove the lone surrogate there") from err
    most = most_prompt_bytes()
    if size > most:
        raise InvalidInput(name, f"{size:,} bytes long", f"at most {most:,}", f"shorten it, or set {LIMIT} higher")


def most_prompt_bytes() -> int:
    """The longest prompt that is read. Errors: `InvalidInput` for a limit that is no number."""
    given = os.environ.get(LIMIT, "")
    if given and not (given.isdecimal() and int(given) > 0):
        raise InvalidInput(LIMIT, repr(given), "a whole number of bytes", f"for example {MAX_PROMPT_BYTES}")
    return int(given) if given else MAX_PROMPT_BYTES
