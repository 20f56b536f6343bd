"""What every prompt must be, whoever reads it: text of a size that is read at once."""

from undertow.errors import InvalidInput
from undertow.limits import PROMPT_BYTES


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
    PROMPT_BYTES.require(name, size, f"{size:,} bytes long", instead="shorten it")
