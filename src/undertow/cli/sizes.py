"""Sizes of pictures as people type them."""

from undertow.errors import InvalidInput


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT, as people say it. Errors: `InvalidInput`."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InvalidInput("--size", repr(text), "WIDTHxHEIGHT in pixels, e.g. 512x768")
    return int(parts[1]), int(parts[0])
