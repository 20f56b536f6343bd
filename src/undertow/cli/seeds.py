"""Seeds as they are typed."""

import secrets

from undertow.errors import InvalidInput

RANDOM = ("random", "-1")
"""What stands for a seed that nobody chose; -1 is A1111's word for it."""

RANGE = 2**32
"""Random seeds are below this, as in A1111 and ComfyUI's first versions: short enough to be typed again."""


def random_seed() -> int:
    """A seed of its own for every run."""
    return secrets.randbelow(RANGE)


def parse_seed(text: str, option: str = "--seed") -> int:
    """A number, or a new one for `RANDOM`. Errors: `InvalidInput`."""
    word = text.strip().lower()
    if word in RANDOM:
        return random_seed()
    if not (word.isascii() and word.isdigit()):
        raise InvalidInput(option, repr(text), "a whole number from 0 on, or a new one: random or -1")
    return int(word)
