"""Which activations of an autoencoder to keep whole, and how large the tiles between them are: a pure planner.

GroupNorm needs statistics over the whole picture, so a tile cannot simply pass through the network. Between two maps
that are kept whole ("cuts"), every norm costs one more pass over all tiles that recomputes everything since the last
cut, only to gather that norm's statistics. Many cuts: nothing is computed twice, and maps at full resolution are kept.
Few cuts: little is kept and much is recomputed. For a memory budget, the cheapest set of cuts is a shortest path, over
cuts as nodes and segments as edges, without the segments that exceed it.

What remains linear in the picture's area are the maps that are kept; at least, those of the lowest resolution, which
attention needs whole. For SD's decoder in float32 at 1024x1024 pixels: 3.5 GiB without tiles, half of it at the same
work, a quarter at 1.7 times, 0.28 GiB at 9 times (predicted; benchmarks/vae_tiling.py measures).
"""

from dataclasses import dataclass
from itertools import pairwise

from undertow.errors import InvalidInput
from undertow.vae.program import Program
from undertow.vae.steps import Add, Attend, NormSiLU, Remember, Step
from undertow.vae.windows import Size, Window, count_tiles, middle_tile

EDGES = (512, 256, 128, 64, 32)
"""Sides of tiles to try, in cells of a segment's output."""

NORMS = 14
"""Most norms in a tiled segment: two levels' worth. Each more would be recomputed again for all the others."""

SMALL_BYTES = 2**16
"""Allowed for everything that is not a map: statistics, scales, shifts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Steps `start` to `stop` without a whole map in between. edge: side of a tile in cells of the output, `None` for
    everything at once."""

    start: int
    stop: int
    edge: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TilePlan:
    """How to run a program. peak_bytes: predicted, activations alone. slowdown: predicted work over that without any
    tiles."""

    segments: tuple[Segment, ...]
    peak_bytes: int
    slowdown: float

    @property
    def is_tiled(self) -> bool:
        return any(segment.edge is not None for segment in self.segments)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Price:
    segment: Segment
    work: float
    numbers: int


def plan_tiles(program: Program, budget_bytes: int | None = None) -> TilePlan:
    """The least work within `budget_bytes` of activations, the program's own input and output included; `None`: no
    limit, no tiles.

    Errors: `InvalidInput` when no plan fits; it says how much the smallest needs.
    """
    whole = _whole(program)
    if budget_bytes is None or _peak(program, whole) <= budget_bytes:
        return _plan(program, whole)
    limit = (budget_bytes - SMALL_BYTES) // program.dtype.itemsize
    path = _cheapest(program, limit)
    if path is None:
        raise InvalidInput(
            "budget_bytes",
            budget_bytes,
            f"at least {smallest_budget(program)} for this size",
            "allow more memory",
        )
    return _plan(program, path)


def smallest_budget(program: Program) -> int:
    """The least `budget_bytes` that `plan_tiles` accepts: the path whose most expensive segment is the cheapest."""
    cuts = _cuts(program)
    needs = {cuts[0]: 0}
    for index, stop in enumerate(cuts[1:], start=1):
        needs[stop] = min(
            max(needs[start], _least_numbers(program, start, stop))
            for start in cuts[:index]
            if _is_allowed(program, start, stop)
        )
    return needs[cuts[-1]] * program.dtype.itemsize + SMALL_BYTES


def windows_for(steps: tuple[Step, ...], sizes: tuple[Size, ...], target: Window) -> list[Window]:
    """The window of every map that `target`, of the last, depends on: one per step, and `target` itself."""
    windows = [target]
    for step, size in zip(reversed(steps), reversed(sizes[:-1]), strict=True):
        windows.append(step.source(windows[-1], size))
    return windows[::-1]


def remembers_its_input(program: Program, segment: Segment) -> bool:
    """Whether a segment begins with the residual block inside which it ends: what the block remembers is then the
    segment's own input, a map that is kept already. One that ends inside a later block remembers another."""
    steps = program.steps[segment.start : segment.stop]
    return isinstance(steps[0], Remember) and not any(isinstance(step, Add) for step in steps)


def _cuts(program: Program) -> list[int]:
    """Where a map may be kept: not where the next step undoes or the last step multiplied what would be stored."""
    steps = program.steps
    inner = [
        index
        for index in range(1, len(steps))
        if not isinstance(steps[index - 1], NormSiLU | Remember) and not isinstance(steps[index], Add)
    ]
    return [0, *inner, len(steps)]


def _whole(program: Program) -> list[_Price]:
    return [_price(program, Segment(start=start, stop=stop, edge=None)) for start, stop in pairwise(_cuts(program))]


def _peak(program: Program, path: list[_Price]) -> int:
    return max(price.numbers for price in path) * program.dtype.itemsize + SMALL_BYTES


def _plan(program: Program, path: list[_Price]) -> TilePlan:
    least = sum(price.work for price in _whole(program))
    return TilePlan(
        segments=tuple(price.segment for price in path),
        peak_bytes=_peak(program, path),
        slowdown=sum(price.work for price in path) / least,
    )


def _cheapest(program: Program, limit: int) -> list[_Price] | None:
    """The shortest path from the first cut to the last, by dynamic programming; `limit` in numbers."""
    cuts = _cuts(program)
    best: dict[int, tuple[float, list[_Price]]] = {cuts[0]: (0.0, [])}
    for index, stop in enumerate(cuts[1:], start=1):
        for start in reversed(cuts[:index]):
            if not _is_allowed(program, start, stop):
                break
            if start not in best:
                continue
            price = _largest_tiles(program, start, stop, limit)
            if price is None:
                continue
            work, path = best[start]
            if stop not in best or work + price.work < best[stop][0]:
                best[stop] = (work + price.work, [*path, price])
    return best[cuts[-1]][1] if cuts[-1] in best else None


def _is_allowed(program: Program, start: int, stop: int) -> bool:
    """Attention stands alone; a longer segment holds at most `NORMS` norms. Longer ones from the same stop fail too."""
    steps = program.steps[start:stop]
    if any(isinstance(step, Attend) for step in steps):
        return len(steps) == 1
    return sum(isinstance(step, NormSiLU) for step in steps) <= NORMS


def _edges(program: Program, start: int, stop: int) -> list[int | None]:
    """Sides of tiles that a segment can have, largest first."""
    if isinstance(program.steps[start], Attend):
        return [None]
    return [None, *(edge for edge in EDGES if edge < max(program.sizes[stop]))]


def _largest_tiles(program: Program, start: int, stop: int, limit: int) -> _Price | None:
    """The segment with the largest tiles that fit."""
    if _kept(program, Segment(start=start, stop=stop, edge=EDGES[0])) > limit:
        return None
    for edge in _edges(program, start, stop):
        price = _price(program, Segment(start=start, stop=stop, edge=edge))
        if price.numbers <= limit:
            return price
    return None


def _least_numbers(program: Program, start: int, stop: int) -> int:
    """What the segment holds at the same time with the smallest tiles."""
    edges = _edges(program, start, stop)
    return min(_price(program, Segment(start=start, stop=stop, edge=edge)).numbers for edge in (edges[0], edges[-1]))


def _price(program: Program, segment: Segment) -> _Price:
    """Work, and numbers held at the same time, of a segment.

    A step before r norms is computed r + 1 times: once for each norm's statistics, and for the result. The tile taken
    as the measure is the middle one, with neighbors on all sides.
    """
    start, stop, edge = segment.start, segment.stop, segment.edge
    steps, sizes, widths = program.steps[start:stop], program.sizes[start : stop + 1], program.channels[start:stop]
    last = sizes[-1]
    windows = windows_for(steps, sizes, Window.whole(last) if edge is None else middle_tile(last, edge))
    count = 1 if edge is None else count_tiles(last, edge)
    passes = 1 if edge is None else 1 + sum(isinstance(step, NormSiLU) for step in steps)
    work, tile, remembered, is_view = 0.0, 0, 0, True
    for index, (step, channels) in enumerate(zip(steps, widths, strict=True)):
        if isinstance(step, NormSiLU) and edge is not None:
            passes -= 1
        before, cells = windows[index].cells * channels, windows[index + 1].cells
        after = cells * step.channels(channels)
        scratch = step.scratch(before, after, tile=edge is not None, dtype=program.dtype)
        work += passes * count * step.work(cells, channels)
        # The segment's first input is a view of a map that is kept, and counted there.
        held = 0 if is_view else before
        match step:
            case Remember():
                remembered = held
            case Add():
                tile = max(tile, before + remembered + scratch)
                remembered = 0
            case _:
                tile = max(tile, held + remembered + scratch + after)
                is_view = False
    return _Price(segment=segment, work=work, numbers=_kept(program, segment) + tile)


def _kept(program: Program, segment: Segment) -> int:
    """Numbers of the whole maps that a segment reads and writes. Without tiles, the result is the last step's output
    and counted there."""
    start, stop = segment.start, segment.stop
    numbers = (program.channels[start] + program.remembered[start]) * _cells(program, start)
    if segment.edge is not None:
        numbers += program.channels[stop] * _cells(program, stop)
    if not remembers_its_input(program, segment):
        numbers += program.remembered[stop] * _cells(program, stop)
    return numbers


def _cells(program: Program, index: int) -> int:
    return Window.whole(program.sizes[index]).cells
