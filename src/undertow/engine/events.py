"""What an observer of requests is told, and how it stops one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.engine.report import Report
from undertow.engine.result import GenerationResult


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """A picture enters a step. request, picture: which of the requests, which of its pictures. step: counts from 0,
    over all passes, of which the request has `steps` steps together. denoised: the newest estimate of the picture's
    latents, `None` at the first step. preview(): a picture of it; small and rough where the model's latents have a
    linear preview, else decoded. cancel(): ends the request, whose pictures are not finished.
    """

    request: int
    picture: int
    step: int
    steps: int
    sigma: float
    denoised: Float[Tensor, "1 channels height width"] | None
    preview: Callable[[], Image.Image | None] = field(repr=False)
    cancel: Callable[[], None] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PictureEvent:
    """A picture is finished, while others of its request may not be. request, picture: as in `StepEvent`. report: of
    the request until now."""

    request: int
    picture: int
    image: Image.Image
    report: Report = field(repr=False)


WorkKind = Literal["encode", "denoise", "decode"]


@dataclass(frozen=True, kw_only=True)
class WorkEvent:
    """A unit of an engine's work is done: a part of a request was encoded, rows shared a forward, or a picture was
    decoded (or enlarged between two passes).

    seconds: it took. requests: their numbers, each once. size: (height, width) of the latents, in cells; `None` while a
    request is encoded. rows: of the forward; computed_rows: with those it was padded with; adapted_rows: in which
    adapters act; failed_rows: without an outcome. refiner: whether the refiner drew. adapters: how many different ones
    the requests name. probed: whether something looked into it, which makes it longer.
    """

    kind: WorkKind
    seconds: float
    requests: tuple[int, ...]
    size: tuple[int, int] | None = None
    rows: int = 0
    computed_rows: int = 0
    adapted_rows: int = 0
    failed_rows: int = 0
    refiner: bool = False
    adapters: int = 0
    probed: bool = False


Watcher = Callable[[WorkEvent], None]
"""Told of each unit of work, by the thread that did it."""

Observer = Callable[[StepEvent], None]

Drawn = Callable[[PictureEvent], None]
"""Told of each picture as soon as it is there."""

Finished = Callable[[int, GenerationResult], None]
"""Told the number of a request and its result."""


def unobserved(event: StepEvent) -> None:
    """Nobody watches."""
    del event


def undrawn(event: PictureEvent) -> None:
    """Nobody takes pictures one by one."""
    del event


def unfinished(request: int, result: GenerationResult) -> None:
    """Nobody waits."""
    del request, result
