"""Runs that are looked into: probes know their rows by a mark, whoever else shares the forwards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from undertow.engine.engine import Engine
from undertow.engine.events import Observer, unobserved
from undertow.engine.options import RunOptions
from undertow.engine.probing import ForwardProbe
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.engine.rows import Origin

_MARKS = count(1)


def next_mark() -> int:
    """For `RunOptions.mark`: nobody else's in this process."""
    return next(_MARKS)


def marked(mark: int) -> Callable[[Origin], bool]:
    """Whether a row is of the run with this mark."""
    return lambda origin: origin.mark == mark


def drawn_with(
    probes: Sequence[ForwardProbe],
    engine: Engine,
    request: GenerationRequest,
    mark: int,
    run: RunOptions | None = None,
    observe: Observer = unobserved,
) -> tuple[GenerationResult, int]:
    """The result of a request with a mark, while the probes are in the engine, and the number that it had there, which
    is 0 as for every request that is drawn by itself. Errors: those of drawing."""
    number = 0
    engine.probes += probes
    try:
        options = replace(RunOptions() if run is None else run, mark=mark)
        (handle,) = engine.submit_together([request], [observe], options=options, numbers=[number])
        try:
            return handle.result(), number
        finally:
            handle.cancel()
    finally:
        for probe in probes:
            engine.probes.remove(probe)
