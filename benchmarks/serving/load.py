"""The service under load: open loop with Poisson arrivals of unlike requests, beside diffusers behind LitServe.

    python -m benchmarks.serving.load [--loads 0.3 0.6 0.8 1.0 1.5] [--seconds 60] [--seed 0] [--own]
                                      [--page docs/results/serving.md]

Every server gets the same traces. Loads are shares of the capacity: the steps a second, of all pictures of a burst,
that undertow computes in its mode "fast". A request comes when the trace says, whatever became of those before. One
thread for each worker. "First step" is the time until a worker took the request. A LitServe that `make load` has
installed is measured too. --own: our modes alone, each at shares of its own capacity: whether it keeps its promises.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import httpx

from benchmarks.serving.outcome import Drawn, Summary, summary
from benchmarks.serving.servers import LITSERVE, LitServe, Server, Undertow
from benchmarks.serving.trace import Arrival, burst, poisson, steps_of
from recipes.emoji.sections import find_section, replace_section

BURST = 24
"""Requests whose pictures measure the capacity."""
COLUMNS = (
    *("server", "load", "requests", "pictures/s", "first step, median (95 %)"),
    *("done, median", "95 %", "99 %", "submit, 99 %", "finish time held"),
)
HEADER = (f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.8, 1.0, 1.5])
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, for each load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--own", action="store_true", help="loads are shares of each mode's own capacity")
    parser.add_argument("--machine", default="", help="for the page")
    parser.add_argument("--page", type=Path, help="replace its section `load`, or `load-own`")
    options = parser.parse_args()
    servers: list[Server] = [Undertow("undertow, fast", "fast"), Undertow("undertow, reproducible", "reproducible")]
    if not options.own:
        servers.append(Undertow("undertow, one job at a time", "fast", at_once=1))
    if not options.own and LITSERVE.is_dir():
        servers.append(LitServe())
    groups = [[server] for server in servers] if options.own else [servers]
    lines = asyncio.run(measure(groups, options.loads, options.seconds, options.seed))
    loads = " ".join(f"{load:g}" for load in options.loads)
    command = f"python -m benchmarks.serving.load --loads {loads} --seconds {options.seconds:g} --seed {options.seed}"
    command += " --own" * options.own
    said = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}" + (f", {options.machine}" if options.machine else "")
    content = "\n".join([said, "", *lines])
    print(content)
    if options.page is not None:
        page = options.page.read_text()
        section = "load-own" if options.own else "load"
        if find_section(page, section) is None:
            raise SystemExit(f"{options.page} has no section `{section}`")
        options.page.write_text(replace_section(page, section, content))


async def measure(groups: Sequence[Sequence[Server]], loads: Sequence[float], seconds: float, seed: int) -> list[str]:
    """The lines of the page. groups: of servers that get the same traces, by the capacity of the first."""
    rates = [await capacity(servers[0], seed) for servers in groups]
    told = [f"{rate:.1f} steps a second ({servers[0].name})" for rate, servers in zip(rates, groups, strict=True)]
    lines = [f"Capacity, of {BURST} requests at once: {', '.join(told)}.", "", *HEADER]
    for load, (rate, servers) in product(loads, zip(rates, groups, strict=True)):
        arrivals = poisson(load * rate, seconds, seed)
        for server in servers:
            async with server.running() as client:
                drawn, took = await play(server, client, arrivals)
            line = table_line(server.name, load, summary(drawn, took))
            print(line, flush=True)
            lines.append(line)
    return lines


async def capacity(server: Server, seed: int) -> float:
    """Steps a second of a burst."""
    async with server.running() as client:
        arrivals = burst(BURST, seed)
        _, seconds = await play(server, client, arrivals)
    return steps_of(arrivals) / seconds


async def play(server: Server, client: httpx.AsyncClient, arrivals: Sequence[Arrival]) -> tuple[list[Drawn], float]:
    """Sends each request when it arrives; returns what became of them, and the seconds until the last was done."""
    start = time.monotonic()

    async def one(arrival: Arrival) -> Drawn:
        await asyncio.sleep(max(0.0, start + arrival.at - time.monotonic()))
        return await server.draw(client, arrival)

    drawn = await asyncio.gather(*map(one, arrivals))
    return list(drawn), time.monotonic() - start


def table_line(name: str, load: float, found: Summary) -> str:
    """Of the table of the page."""
    first = "" if found.first_step_p50 is None else f"{found.first_step_p50:.2f} s ({found.first_step_p95:.2f} s)"
    kept = "" if found.kept is None else f"{100 * found.kept:.0f} %"
    refused = f" ({found.refused} refused)" if found.refused else ""
    cells = (
        *(name, f"{load:g}", f"{found.requests}{refused}", f"{found.pictures_per_s:.2f}", first),
        *(f"{seconds:.2f} s" for seconds in (found.done_p50, found.done_p95, found.done_p99)),
        *(f"{1000 * found.submitted_p99:.0f} ms", kept),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
