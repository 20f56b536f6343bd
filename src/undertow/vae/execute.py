"""Runs a program by its plan, watching what comes out of every step."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import NonFiniteError
from undertow.nn.memory_order import order_of
from undertow.vae.plan import Segment, TilePlan, plan_tiles, remembers_its_input, smallest_budget, windows_for
from undertow.vae.program import Program
from undertow.vae.statistics import Moments, Statistics
from undertow.vae.steps import Add, Attend, Convolve, Map, NewMap, NormSiLU, Place, Remember, Step
from undertow.vae.windows import Size, Window, tiles

HIGHER = torch.float32
"""What half-precision types are retried in."""

Observe = Callable[[str, Tensor], None]
"""Called with a step's name and the part of its output that is computed nowhere else, before it is refused or cut."""


def unobserved(name: str, output: Tensor) -> None:
    """Nobody looks."""
    del name, output


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A program's result and how it came about. first_non_finite: the step whose output left the range of the type
    it was asked for, and from whose segment on `HIGHER` was used. clamped: values cut, by step."""

    result: Float[Tensor, "batch channels height width"]
    plan: TilePlan
    first_non_finite: str | None
    clamped: Counter[str]


@dataclass(frozen=True, kw_only=True)
class _Maps:
    """What is kept whole between two segments."""

    hidden: Float[Tensor, "batch channels height width"]
    remembered: Float[Tensor, "batch other height width"] | None = None

    def to(self, dtype: torch.dtype) -> "_Maps":
        remembered = None if self.remembered is None else self.remembered.to(dtype)
        return _Maps(hidden=self.hidden.to(dtype), remembered=remembered)


class _Watch:
    """Refuses outputs that are not finite; cuts and counts large ones where that is asked for."""

    def __init__(self, clamp: float | None, observe: Observe):
        self._clamp = clamp
        self._observe = observe
        self.clamped: Counter[str] = Counter()

    def __call__(self, step: Step, hidden: Map, counted: tuple[slice, slice] | None) -> None:
        """`hidden` is changed in place by a clamp. counted: the part of it that is counted, `None` where a value is
        computed again elsewhere. Errors: `NonFiniteError`."""
        if counted is not None and self._observe is not unobserved:
            self._observe(step.name, hidden[:, :, *counted])
        if self._clamp is not None and _exceeds(hidden, self._clamp):
            if counted is not None:
                self.clamped[step.name] += int((hidden[:, :, *counted].abs() > self._clamp).sum())
            hidden.clamp_(-self._clamp, self._clamp)
        self.refuse(step, hidden)

    def refuse(self, step: Step, output: Float[Tensor, "..."]) -> None:
        """Errors: `NonFiniteError`."""
        low, high = _range(output)
        if not float("-inf") < low <= high < float("inf"):
            raise NonFiniteError(
                step.name,
                output.dtype,
                "NaN or Inf from finite input",
                "the weights or the input are bad" if output.dtype.itemsize >= HIGHER.itemsize else f"use {HIGHER}",
            )


def _exceeds(x: Float[Tensor, "..."], limit: float) -> bool:
    """NaN exceeds nothing, so it is not counted as clamped; where there is any, nothing is clamped at all."""
    low, high = _range(x)
    return low < -limit or high > limit


def _range(x: Float[Tensor, "..."]) -> tuple[float, float]:
    """NaN twice where any is: one pass, without a temporary, in the order in which numbers lie in memory."""
    ordered = x.permute(0, 2, 3, 1) if x.ndim == 4 and x.stride(1) == 1 else x
    low, high = ordered.aminmax()
    return low.item(), high.item()


@torch.no_grad()
def execute(
    program: Program, inputs: Map, *, budget_bytes: int | None, clamp: float | None, observe: Observe = unobserved
) -> Execution:
    """Computes in the program's type; where a step's output is not finite in half precision, again from the last map
    kept before it, in `HIGHER` to the end.

    A retry within a budget may exceed it when twice the bytes do not fit; the plan then is the smallest there is.
    Errors: `InvalidInput` for a budget that is too small; `NonFiniteError` when `HIGHER` does not help.
    """
    watch = _Watch(clamp, observe)
    plan = plan_tiles(program, budget_bytes)
    maps, first_non_finite = _Maps(hidden=inputs.to(program.dtype)), None
    pending = list(plan.segments)
    while pending:
        outcome = _attempt(program, pending[0], maps, watch)
        if isinstance(outcome, _Maps):
            maps = outcome
            pending.pop(0)
            continue
        first_non_finite = outcome
        program = program.tail(pending[0].start, HIGHER)
        maps = maps.to(HIGHER)
        if budget_bytes is not None:
            budget_bytes = max(budget_bytes, smallest_budget(program))
        plan = plan_tiles(program, budget_bytes)
        pending = list(plan.segments)
    return Execution(result=maps.hidden, plan=plan, first_non_finite=first_non_finite, clamped=watch.clamped)


def _attempt(program: Program, segment: Segment, maps: _Maps, watch: _Watch) -> _Maps | str:
    """The segment's result, or the name of the step that a higher precision may save. Only the name leaves: the error
    itself would keep the tensors of its frames alive."""
    try:
        return _run(program, segment, maps, watch)
    except NonFiniteError as err:
        if maps.hidden.dtype.itemsize >= HIGHER.itemsize:
            raise
        return err.layer


def _run(program: Program, segment: Segment, maps: _Maps, watch: _Watch) -> _Maps:
    steps = program.steps[segment.start : segment.stop]
    sizes = program.sizes[segment.start : segment.stop + 1]
    if segment.edge is None:
        return _compute(steps, sizes, Window.whole(sizes[-1]), maps, {}, watch, count=True)
    grid = tiles(sizes[-1], segment.edge)
    statistics: dict[int, Statistics] = {}
    for index, step in enumerate(steps):
        if isinstance(step, NormSiLU):
            moments = Moments(step.norm.num_groups)
            for tile in grid:
                target = tile.rescaled(sizes[-1], sizes[index])
                moments.add(
                    _compute(steps[:index], sizes[: index + 1], target, maps, statistics, watch, count=False).hidden
                )
            statistics[index] = moments.finish()
    result = _empty_maps(program, segment, maps)
    for tile in grid:
        _paste(_compute(steps, sizes, tile, maps, statistics, watch, count=True), tile, result, maps)
    return result


def _compute(
    steps: tuple[Step, ...],
    sizes: tuple[Size, ...],
    target: Window,
    maps: _Maps,
    statistics: dict[int, Statistics],
    watch: _Watch,
    *,
    count: bool,
) -> _Maps:
    """The window `target` of what `steps` make of `maps`."""
    windows = windows_for(steps, sizes, target)
    hidden: Tensor = _crop(maps.hidden, windows[0], Window.whole(sizes[0]))
    remembered, kept = maps.remembered, Window.whole(sizes[0])
    for index, step in enumerate(steps):
        place = Place(before=windows[index], after=windows[index + 1], size=sizes[index + 1])
        # A step in another type than its weights lives for one computation: nothing here may keep it.
        match step:
            case Remember():
                remembered, kept = hidden, place.before
                continue
            case NormSiLU():
                hidden = step.to(hidden.dtype).compute(hidden, statistics.get(index))
                continue
            case Convolve():
                hidden = step.to(hidden.dtype).compute(hidden, place)
            case Attend():
                hidden = _attend(step.to(hidden.dtype), hidden, watch)
            case Add():
                assert remembered is not None
                hidden = step.to(hidden.dtype).compute(hidden, _crop(remembered, place.before, kept))
                remembered = None
            case _:
                raise AssertionError(step)
        owned = target.rescaled(sizes[-1], sizes[index + 1])
        watch(step, hidden, owned.inside(place.after) if count else None)
    return _Maps(hidden=hidden, remembered=None if remembered is None else _crop(remembered, target, kept))


def _attend(step: Attend, hidden: Map, watch: _Watch) -> Map:
    for part in step.logits_inputs(hidden):
        watch.refuse(step, part)
    return step.compute(hidden)


def _crop(x: Map, window: Window, outer: Window) -> NewMap:
    rows, columns = window.inside(outer)
    return x[:, :, rows, columns]


def _empty_maps(program: Program, segment: Segment, maps: _Maps) -> _Maps:
    """Room for a segment's result."""
    size, stop = program.sizes[segment.stop], segment.stop
    rows, dtype, device = maps.hidden.shape[0], maps.hidden.dtype, maps.hidden.device
    order = order_of(dtype, device)
    shape = (rows, program.channels[stop], *size)
    hidden = torch.empty(shape, dtype=dtype, device=device, memory_format=order)
    kept = program.remembered[stop]
    if kept == 0:
        return _Maps(hidden=hidden)
    if remembers_its_input(program, segment):
        return _Maps(hidden=hidden, remembered=maps.hidden)
    remembered = torch.empty((rows, kept, *size), dtype=dtype, device=device, memory_format=order)
    return _Maps(hidden=hidden, remembered=remembered)


def _paste(part: _Maps, tile: Window, result: _Maps, source: _Maps) -> None:
    """A tile into its place, without leaving a reference to it behind while the next one is computed."""
    height, width = result.hidden.shape[2:]
    rows, columns = tile.inside(Window.whole((height, width)))
    result.hidden[:, :, rows, columns] = part.hidden
    if result.remembered is not None and result.remembered is not source.hidden:
        assert part.remembered is not None
        result.remembered[:, :, rows, columns] = part.remembered
