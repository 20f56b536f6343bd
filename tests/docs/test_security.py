"""The guide's table of limits is the table."""

import re
from pathlib import Path

from undertow.limits import LIMITS

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "security.md"


def test_the_guide_lists_every_limit_with_its_number():
    listed = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {name: int(number.replace(",", "")) for name, number in listed} == {
        name: limit.usual for name, limit in LIMITS.items()
    }
