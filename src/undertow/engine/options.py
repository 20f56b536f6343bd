"""How a request is run, none of which changes what it asks for."""

from dataclasses import dataclass
from typing import Literal, get_args

from undertow.doors import checked_record
from undertow.engine.debug import Debug
from undertow.engine.events import Drawn, undrawn
from undertow.engine.limits import BatchLimits
from undertow.errors import InvalidInput
from undertow.memory.ladder import StepDown

NonFinite = Literal["upcast", "clamp", "fail", "keep"]


@checked_record
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a request.

    low_vram: networks are in memory only while they work, and pictures are decoded within
    `engine.decode.LOW_VRAM_DECODE_BYTES`; slower, the same pictures. budget_bytes: the most memory of the process,
    or of a CUDA device, that may be used; what is done to keep to it changes pictures within rounding, and is
    reported. course: what is done for less memory from which unit of the request's work on, as a report says it, so
    that a picture that ran out of memory can be drawn again to the bit. vae_clamp: cut the decoder's activations at
    float16's range, which changes pictures and is counted. debug: what to watch. limits: how many rows share a
    forward; `None` leaves it to the engine. non_finite: what is done when the network predicts NaN or Inf for one
    of its rows. The row is evaluated once more, which finds the first module whose output is not finite and why;
    "upcast" computes that module in float32 and goes on, which is counted and reported, "clamp" cuts what overflows
    at ±65,000 instead, which changes the picture more, and "fail" ends the request with a `NonFiniteError` that
    names module, step, row and cause, as the others do where they do not help. "keep" goes on with those numbers.
    mark: of its rows' origins, by which probes know them. drawn: called with each picture as soon as it is decoded,
    by the thread that works; what it raises fails the request. Errors: `InvalidInput`.
    """

    low_vram: bool = False
    budget_bytes: int | None = None
    course: tuple[StepDown, ...] = ()
    vae_clamp: bool = False
    debug: Debug = Debug()
    limits: BatchLimits | None = None
    non_finite: NonFinite = "upcast"
    mark: int = 0
    drawn: Drawn = undrawn

    def __post_init__(self) -> None:
        if isinstance(self.budget_bytes, bool) or (self.budget_bytes is not None and self.budget_bytes < 1):
            raise InvalidInput("budget_bytes", self.budget_bytes, "a number of bytes, at least 1")
        if self.non_finite not in get_args(NonFinite):
            raise InvalidInput("non_finite", repr(self.non_finite), " or ".join(map(repr, get_args(NonFinite))))
