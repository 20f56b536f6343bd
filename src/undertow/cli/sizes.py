"""Sizes of pictures as people type them."""

from undertow.errors import InvalidInput


def parse_size(text: str, unit: str = "pixels, such as 512x768") -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT, as people say it, or from one number for both. unit: what is counted, with an
    example. Errors: `InvalidInput`."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidInput("--size", repr(text), f"WIDTHxHEIGHT in {unit}, or one number for both")
    return int(parts[-1]), int(parts[0])
