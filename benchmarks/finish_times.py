"""What a service says of time against what a simulated one does: promised at submit, and done.

A worker takes jobs by the schedule and an engine works on them unit by unit, in simulated time
(`benchmarks/lib/simulated_service.py`): Poisson arrivals of three keys, mixed sizes, steps and counts, a tenth of the
jobs cancelled by their clients, noise of 5 % on every unit of work. Prints Markdown tables; the same seeds give the
same numbers on every machine, but for the last table, which is of this one's time.

    python -m benchmarks.finish_times [--seeds 20] [--jobs 250] [--first 0] [--at 0.8]
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from benchmarks.lib.simulated_service import MACHINES, Machine, Outcome, World, run_all
from undertow.serving import schedule
from undertow.serving.clock.finish_times import Device, finish_times
from undertow.serving.schedule import FairState, pick

LOADS = (0.3, 0.5, 0.8, 1.0)
NO_TURNS = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=250)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--at", type=float, nargs="+", metavar="LOAD", help="these loads alone, and no other table")
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    print(f"Seeds {seeds[0]} to {seeds[-1]}, {given.jobs} jobs each.\n")
    _loads(seeds, given.jobs, given.at or LOADS)
    if given.at is None:
        _policies(seeds, given.jobs)
        _speed()


def _loads(seeds: Sequence[int], jobs: int, loads: Sequence[float]) -> None:
    print("| machine | load | busy | median s | held | late | early | worst seed, held |")
    print("|---|---|---|---|---|---|---|---|")
    for machine in MACHINES:
        for load in loads:
            outcomes = run_all(machine, seeds, count=jobs, load=load)
            busy = statistics.mean(outcome.busy for outcome in outcomes)
            took = statistics.median(
                job.done_at - job.entry.submitted_at for one in outcomes for job in one.jobs if job.done_at is not None
            )
            print(f"| {machine.name} | {load} | {busy:.2f} | {took:.1f} | {_shares(outcomes)} |", flush=True)
    print()


def _policies(seeds: Sequence[int], jobs: int) -> None:
    """What other quanta would keep, at 0.8."""
    print("| quantum, jobs | credit | machine | held | late | early | worst seed, held |")
    print("|---|---|---|---|---|---|---|")
    usual = schedule.QUANTUM_JOBS, schedule.CREDIT
    try:
        for quantum, credit in ((1.0, 0.0), (8.0, 0.5), usual, (NO_TURNS, 0.0)):
            schedule.QUANTUM_JOBS, schedule.CREDIT = quantum, credit
            for machine in MACHINES:
                shares = _shares(run_all(machine, seeds, count=jobs))
                turns = f"{quantum:g} | {credit:g}" if quantum < NO_TURNS else "no turns | -"
                print(f"| {turns} | {machine.name} | {shares} |", flush=True)
    finally:
        schedule.QUANTUM_JOBS, schedule.CREDIT = usual
    print()


def _shares(outcomes: Sequence[Outcome]) -> str:
    jobs = [job for outcome in outcomes for job in outcome.jobs]
    late = sum(job.error > job.allowed for job in jobs) / len(jobs)
    early = sum(job.error < -job.allowed for job in jobs) / len(jobs)
    worst = min(outcome.share("held") for outcome in outcomes)
    return f"{1 - late - early:.1%} | {late:.1%} | {early:.1%} | {worst:.1%}"


def _speed(repeats: int = 5) -> None:
    """Processor time of the clock and of the schedule."""
    print("| jobs | keys | finish times of all, ms | pick, ms |")
    print("|---|---|---|---|")
    for count in (100, 1000):
        for keys in (3, 300):
            clock_ms, pick_ms = zip(*(_one(MACHINES[-1], count, keys) for _ in range(repeats)), strict=True)
            print(f"| {count} | {keys} | {min(clock_ms):.1f} | {min(pick_ms):.2f} |")


def _one(machine: Machine, count: int, keys: int) -> tuple[float, float]:
    world = World(machine=machine, keys=keys, count=count)
    entries = [job.entry for job in world.jobs()]
    device = Device(costs={"m": world.costs}, models={"m"})
    started = time.process_time()
    finish_times(entries, {"w": device}, 0.0, FairState())
    between = time.process_time()
    pick(entries, FairState(), device.room((), 0.0))
    return (between - started) * 1000, (time.process_time() - between) * 1000


if __name__ == "__main__":
    main()
