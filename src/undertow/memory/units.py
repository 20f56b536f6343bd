"""Amounts of memory as people type and read them."""

import re
from collections.abc import Mapping

from undertow.errors import InvalidInput

UNITS: Mapping[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
"""Bytes of a unit, in lower case (IEC 80000-13: GB are powers of 1000, GiB powers of 1024)."""

AMOUNT = re.compile(r"(\d+(?:[.,]\d+)?) *([a-z]*)", re.IGNORECASE)


def parse_bytes(argument: str, text: str) -> int:
    """The bytes of "6GB", "512 MiB" or "1.5GB". argument: what messages call it. Errors: `InvalidInput`."""
    match = AMOUNT.fullmatch(text.strip())
    unit = None if match is None else UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise InvalidInput(argument, repr(text), "an amount of memory", "such as 6GB, 512MiB or a number of bytes")
    count = int(float(match[1].replace(",", ".")) * unit)
    if count < 1:
        raise InvalidInput(argument, repr(text), "more than no memory", "such as 6GB or 512MiB")
    return count
