"""Requests to pictures, all at once: what a caller that waits for them needs of an engine."""

from collections.abc import Sequence

from torch import Tensor

from undertow.engine.engine import Engine
from undertow.engine.events import Finished, Observer, unfinished, unobserved
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult


def generate_many(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    options: RunOptions | None = None,
    *,
    observe: Observer = unobserved,
    finished: Finished = unfinished,
    latents: Tensor | None = None,
) -> list[GenerationResult]:
    """The pictures of unlike requests. Those whose rows are of equal shape share forwards; each equals the one made
    alone up to rounding, and to the bit where `limits.padded_to` fixes the number of rows.

    observe: called at each step of each picture, with the request's place among these. finished: called with a
    request's place and its result as soon as that is there, unless it was cancelled. latents: as in `Engine.submit`.
    Errors, for any of the requests and before any step: `InvalidInput`; `MissingComponent` names what the checkpoint
    lacks. Later ones are raised when all are done, the first first.
    """
    places = range(len(requests))
    observers = [observe] * len(requests)
    handles = engine.submit_together(requests, observers, options=options, latents=latents, numbers=places)
    waiting = dict(enumerate(handles))
    try:
        while waiting:
            engine.run_until(lambda: any(handle.done for handle in waiting.values()))
            for place in [place for place, handle in waiting.items() if handle.done]:
                result = waiting.pop(place).result_or_none()
                if result is not None and not result.report.cancelled:
                    finished(place, result)
        return [handle.result() for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()
