"""What attention kernels are chosen for, and the names by which they are asked for. Imports no torch, so that a name is
checked before anything slow is imported."""

from dataclasses import dataclass
from typing import Literal, get_args

from undertow.doors import checked_record
from undertow.errors import InvalidInput
from undertow.lookup import did_you_mean

Goal = Literal["speed", "memory", "balanced"]
"""What a kernel is chosen for. "balanced": the least memory among those that take little longer than the fastest."""

GOALS: tuple[Goal, ...] = get_args(Goal)

AUTO = "auto"
"""The goal "speed"."""

KERNEL_NAMES = (
    *("math", "sdpa", "chunked", "sliced", "flash", "efficient", "cudnn", "xformers"),
    "local-approximate",
)
"""Keys of `catalogue.KERNELS`."""

SCORES_OUT = ("math", "sliced")
"""Kernels that write scores out, for all heads or for one at a time."""


@checked_record
@dataclass(frozen=True, kw_only=True)
class AttentionPolicy:
    """What attention kernels are chosen for.

    goal: "speed"; "memory"; or "balanced", the least memory among kernels that take little longer than the fastest.
    budget_bytes: what a call may allocate beside its inputs and its output; where no kernel stays within it, the one
    that needs least is taken. Errors: `InvalidInput`.
    """

    goal: Goal = "speed"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise InvalidInput("goal", repr(self.goal), f"one of {', '.join(GOALS)}")
        if self.budget_bytes is not None and self.budget_bytes < 0:
            raise InvalidInput("budget_bytes", self.budget_bytes, "0 or more bytes")


FASTEST = AttentionPolicy()


def as_policy(name: str | AttentionPolicy, argument: str = "attention") -> AttentionPolicy | None:
    """The policy that is asked for by name; `None` for a kernel's name. Errors: `InvalidInput` for one that is
    neither."""
    if isinstance(name, AttentionPolicy):
        return name
    if name in KERNEL_NAMES:
        return None
    for goal in GOALS:
        if name in (goal, AUTO):
            return AttentionPolicy(goal=goal)
    known = (AUTO, *GOALS, *KERNEL_NAMES)
    raise InvalidInput(argument, repr(name), f"one of {', '.join(known)}", did_you_mean(name, known).rstrip())
