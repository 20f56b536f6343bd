"""Sizes of pictures as people type them."""

from undertow.errors import InvalidInput


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT, as people say it, or from one number for both. Errors: `InvalidInput`."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidInput("--size", repr(text), "WIDTHxHEIGHT in pixels, such as 512x768, or one number for both")
    return int(parts[-1]), int(parts[0])
