"""How many workers a stream of pictures needs: a fleet in simulated time, from costs that were measured.

    python -m benchmarks.fleet [--seed 0] [--minutes 20] [--costs FILE] [--page docs/results/scaling.md]

Requests arrive at random (Poisson) and take 8 to 30 steps; half of them with one of 500 LoRA by Zipf's law. A worker
draws one request after the other (on a CPU a shared forward gains nothing), prefers one whose LoRA is in one of its
slots, and dies at random; its picture goes on elsewhere from its log after the lease has run out. The answer is the
least number of workers with which 95 % of requests wait at most as long as a picture takes, and which are busy for at
most 95 % of the time.
"""

import argparse
import heapq
import json
import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from math import ceil
from pathlib import Path

from recipes.emoji.sections import replace_section
from undertow.serving.worker.about import SAY_S
from undertow.serving.worker.pulse import BEAT_S

COSTS = Path(__file__).parents[1] / "docs" / "results" / "scaling.json"
RATES = (10, 1_000, 100_000)
"""Pictures a minute."""
ADAPTERS, ZIPF, ADAPTED = 500, 1.1, 0.5
LOOKED_AT = 32
"""Waiting requests among which a worker looks for one of its LoRA."""
PATIENCE, BUSY = 0.95, 0.95


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a worker takes, in seconds. step_s: two rows. adapted: the part that LoRA add. decode_s: of a picture.
    swap_s: a LoRA from its file into a slot, of which there are `slots`. mtbf_s: between two deaths. away_s: until a
    picture goes on elsewhere. again: the share of its steps that are computed twice then."""

    step_s: float
    adapted: float
    decode_s: float
    swap_s: float
    slots: int = 8
    mtbf_s: float = 6 * 3600.0
    away_s: float = 12.0
    again: float = 0.05
    steps: tuple[int, ...] = (8, 12, 20, 30)

    @property
    def picture_s(self) -> float:
        """Of a picture, on average, without what goes wrong."""
        mean = sum(self.steps) / len(self.steps)
        return self.decode_s + mean * self.step_s * (1 + ADAPTED * self.adapted)


@dataclass(frozen=True, kw_only=True)
class Request:
    arrived_s: float
    steps: int
    adapter: int | None


@dataclass(kw_only=True)
class Worker:
    """slots: its LoRA, those used last at the end."""

    slots: OrderedDict[int, None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a simulated fleet, after a fifth of its requests, with which it filled. waited_s: 95 % waited less. busy:
    share of time. swapped: share of requests with a LoRA that had to be read. interrupted: whose worker died."""

    workers: int
    waited_s: float
    busy: float
    swapped: float
    interrupted: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="of arrivals")
    parser.add_argument("--most", type=int, default=1_000_000, help="requests of a simulation at most")
    parser.add_argument("--page", type=Path, help="replace its section `fleet`")
    parser.add_argument("--costs", type=Path, default=COSTS, help="what benchmarks.scaling wrote")
    options = parser.parse_args()
    costs = json.loads(options.costs.read_text(encoding="utf-8"))
    machine = Machine(**{one.name: costs[one.name] for one in fields(Machine) if one.name in costs})
    table = [
        "| pictures a minute | workers | of the work alone | waited, 95 % | busy | LoRA read | interrupted | store |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rate in RATES:
        minutes = min(options.minutes, options.most / rate)
        found = fewest(machine, rate / 60, minutes * 60, options.seed)
        least = rate / 60 * machine.picture_s
        table.append(
            f"| {rate:,} | {found.workers:,} | {least:,.1f} | {found.waited_s:.1f} s "
            f"| {found.busy:.0%} | {found.swapped:.0%} | {found.interrupted} "
            f"| {changes(found.workers, rate / 60):,.0f}/s |".replace("%", " %")
        )
        print(table[-1], flush=True)
    if options.page is not None:
        said = (
            f"`python -m benchmarks.fleet --seed {options.seed} --minutes {options.minutes:g}`, a core of "
            f"{costs['machine']}, {costs['dtype']}: a step {machine.step_s:.2f} s, {machine.adapted:.1%} more with "
            f"LoRA, decoding {machine.decode_s:.2f} s, a LoRA into a slot {machine.swap_s:.2f} s."
        ).replace("%", " %")
        page = replace_section(options.page.read_text(encoding="utf-8"), "fleet", "\n".join([said, "", *table]))
        options.page.write_text(page, encoding="utf-8")


def changes(workers: int, rate: float) -> float:
    """Of the store in a second: leases of the workers, what these say of themselves, and for a picture its acceptance,
    claim and result."""
    return workers * (1 / BEAT_S + 1 / SAY_S) + 3 * rate


def fewest(machine: Machine, rate: float, seconds: float, seed: int) -> Outcome:
    """By bisection over numbers of workers."""
    stream = list(requests(machine, rate, seconds, seed))
    low = ceil(rate * machine.picture_s)  # fewer could not keep up, which a short simulation might not show
    high = low
    while not enough(machine, found := simulate(machine, stream, high, seed)):
        low, high = high + 1, int(high * 1.3) + 1
    while low < high:
        middle = (low + high) // 2
        tried = simulate(machine, stream, middle, seed)
        if enough(machine, tried):
            high, found = middle, tried
        else:
            low = middle + 1
    return found


def enough(machine: Machine, outcome: Outcome) -> bool:
    return outcome.waited_s <= machine.picture_s and outcome.busy <= BUSY


def requests(machine: Machine, rate: float, seconds: float, seed: int) -> Iterator[Request]:
    chance = random.Random(seed)
    popular = list(accumulate(1 / (index + 1) ** ZIPF for index in range(ADAPTERS)))
    now = 0.0
    while (now := now + chance.expovariate(rate)) < seconds:
        adapter = chance.choices(range(ADAPTERS), cum_weights=popular)[0] if chance.random() < ADAPTED else None
        yield Request(arrived_s=now, steps=chance.choice(machine.steps), adapter=adapter)


def simulate(machine: Machine, stream: Sequence[Request], count: int, seed: int) -> Outcome:
    """Every request once, in the order of arrival but for the LoRA that a worker has."""
    chance = random.Random(seed + 1)
    workers = [Worker() for _ in range(count)]
    free = [(0.0, index) for index in range(count)]
    waiting: deque[Request] = deque()
    waits: list[float] = []
    coming = deque(stream)
    busy, read, adapted, interrupted = 0.0, 0, 0, 0
    while coming or waiting:
        at, index = heapq.heappop(free)
        if not waiting and coming[0].arrived_s > at:
            at = coming[0].arrived_s
        while coming and coming[0].arrived_s <= at:
            waiting.append(coming.popleft())
        request = chosen(waiting, workers[index])
        took = machine.decode_s + request.steps * machine.step_s
        if request.adapter is not None:
            adapted += 1
            took += request.steps * machine.step_s * machine.adapted
            if not held(workers[index], request.adapter, machine.slots):
                read += 1
                took += machine.swap_s
        if chance.random() < took / machine.mtbf_s:
            interrupted += 1
            took = took * (1 + machine.again) + machine.away_s
            workers[index].slots.clear()
        waits.append(at - request.arrived_s)
        busy += took
        heapq.heappush(free, (at + took, index))
    waits = sorted(waits[len(waits) // 5 :])
    return Outcome(
        workers=count,
        waited_s=waits[int(PATIENCE * (len(waits) - 1))],
        busy=busy / (count * stream[-1].arrived_s),
        swapped=read / max(1, adapted),
        interrupted=interrupted,
    )


def chosen(waiting: deque[Request], worker: Worker) -> Request:
    """The oldest, or the oldest of the first few whose LoRA the worker has."""
    for place in range(min(LOOKED_AT, len(waiting))):
        request = waiting[place]
        if request.adapter is None or request.adapter in worker.slots:
            del waiting[place]
            return request
    return waiting.popleft()


def held(worker: Worker, adapter: int, slots: int) -> bool:
    """Whether a LoRA is in a slot; from now on it is."""
    there = adapter in worker.slots
    worker.slots[adapter] = None
    worker.slots.move_to_end(adapter)
    if len(worker.slots) > slots:
        worker.slots.popitem(last=False)
    return there


if __name__ == "__main__":
    main()
