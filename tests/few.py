"""Cases of which an ordinary run tries a few."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], count: int) -> list[Any]:
    """The first ones as they are, and the others for `make test-slow` alone. Tuples are the values of several
    arguments."""
    return [
        case if index < count else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for index, case in enumerate(cases)
    ]
