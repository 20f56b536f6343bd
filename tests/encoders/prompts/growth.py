"""How the time to parse hostile prompts grows with their length; prints those for which it is more than linear.

Runs as a program of its own: where tests check annotations, those checks take most of the time.
"""

import gc
import json
import time

from undertow.encoders.prompts import DIALECTS
from undertow.encoders.prompts.tree import Blend, Composed, Joined, fragments
from undertow.errors import UndertowError

SHORT = 2000
"""Characters: enough for a square to outweigh everything else."""

FOURFOLD_AT_MOST = 9.0
"""How much longer four times as much text may take: 4 is linear, 16 a square, the rest is for a busy machine."""

ENOUGH_S = 0.004
"""What takes less than this for the long prompt has no square in it."""

TRIES = 4

PIECES = (
    *("<a:", "<a:b> ", "<a", ">"),
    *(" ", "\n", "\t :", " B"),
    *("(a", "[a", "(]", "[a)", "(a:1) ", "[a|b] ", "[a:b:1]", "\\(", "a:", ":1"),
    *("word ", "x BREAK ", " AND", ",a", "a.", "a+ ", "a-", "="),
    *("a.swap(", "b a.swap(", "a.swap(b) ", '"a ', '"a" ', '\\"', "withLora(a,", "a.attend(", "(a)0.5 ", "+"),
    *(" embedding:a", "embedding:,"),
)
STARTS = {"a1111": ("", "|"), "comfy": ("",), "compel": ("", '("a", ')}


def seconds(text: str, dialect: str) -> float:
    """Of this thread's own time."""
    begin = time.thread_time()
    try:
        tree = DIALECTS[dialect].parse(text, emphasis=True, composition=True).tree
        if not isinstance(tree, Blend | Composed | Joined):
            fragments(tree)
    except UndertowError:
        pass  # a refusal is an answer
    return time.thread_time() - begin


def grows_too_fast(text: str, dialect: str) -> bool:
    """Whether it did so in every one of several tries."""
    for _ in range(TRIES):
        long = seconds(text, dialect)
        if long < ENOUGH_S or long < FOURFOLD_AT_MOST * seconds(text[:SHORT], dialect):
            return False
    return True


if __name__ == "__main__":
    gc.disable()
    texts = [
        (start + piece * (4 * SHORT // len(piece)), dialect)
        for dialect, starts in STARTS.items()
        for start in starts
        for piece in PIECES
    ]
    print(json.dumps({"slow": [text[:20] for text, dialect in texts if grows_too_fast(text, dialect)]}))
