"""Whether nothing is lost, nothing is done twice and every picture has the same bytes, whatever dies meanwhile.

    python -m benchmarks.serving.soak [--jobs 2000] [--kills 200] [--minutes M] [--seed 0] [--postgresql] [--page FILE]

Submits unlike jobs over HTTP to a service in processes of its own and disturbs it at random moments: kill -9 of the
worker (at whatever it does), of the API and of the supervisor, SIGSTOP of the worker past its lease, a database that is
locked for longer than the service waits, a full disk (where this user may mount one), and with `--postgresql` a server
that is killed and recovers. Every job is drawn in an undisturbed service too, and must have the same bytes. `--kills 0
--minutes 60` is a soak: memory, open files and the write-ahead log must not grow. Exits with 1 where a promise was
broken.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving.disturbed import Sample, Service, put
from benchmarks.serving.hosts import Postgresql, small_disk
from recipes.emoji.sections import find_section, replace_section
from undertow.serving.jobs import Job, JobState
from undertow.serving.store.store import Store

UNLIKE = 40
"""Requests that differ; jobs repeat them."""
AHEAD = 30
"""Jobs that wait at most."""
PATIENCE_S = 3600.0
LATE = "is not this worker's any more"
"""What a worker says of a job that it lost."""
FINAL = {state.value for state in JobState if state.is_final}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """lost: without a final state, or failed. doubled: with more than one final event. different: with other bytes.
    gaps: whose events are not numbered one by one. computed, twice: steps, and those that were computed again. away_s:
    for each worker that was killed, the seconds until the next one took a job."""

    jobs: int
    lost: list[str]
    doubled: list[str]
    different: list[str]
    gaps: list[str]
    resumed: int
    computed: int
    twice: int
    away_s: list[float]

    @property
    def broken(self) -> bool:
        return bool(self.lost or self.doubled or self.different or self.gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200, help="disturbances, spread over the jobs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no job is submitted later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgresql", action="store_true", help="on a server of its own instead of SQLite")
    parser.add_argument("--machine", default="", help="for the page")
    parser.add_argument("--page", type=Path, help="replace its section `soak`, or `soak-postgresql`")
    options = parser.parse_args()
    chance, started = random.Random(options.seed), time.monotonic()
    requests = [unlike(chance, index) for index in range(min(UNLIKE, options.jobs))]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undertow-soak-"))
        expected = undisturbed(Path(folder, "undisturbed"), requests)
        data = Path(folder, "disturbed")
        if not stack.enter_context(small_disk(data)):
            sys.stderr.write("no disk of its own could be mounted, so it is never full; root may mount one\n")
        database = Postgresql() if options.postgresql else None
        if database is not None:
            stack.callback(database.close)
        service = Service(data=data, database=database, log=Path(folder, "log"))
        service.start()
        try:
            count = disturb(service, requests, options, chance)
            judged = judge(service.store, requests, expected, count, service.killed_at)
        finally:
            service.stop()
            log = service.log.read_text(errors="replace")
    minutes = (time.monotonic() - started) / 60
    content = "\n".join(said(options, judged, service, minutes, log))
    sys.stdout.write(f"{content}\n")
    for name in ("lost", "doubled", "different", "gaps"):
        if found := getattr(judged, name):
            sys.stdout.write(f"{name}: {', '.join(found[:20])}\n")
    if options.page is not None:
        page = options.page.read_text()
        section = "soak-postgresql" if options.postgresql else "soak"
        if find_section(page, section) is None:
            raise SystemExit(f"{options.page} has no section `{section}`")
        options.page.write_text(replace_section(page, section, content))
    sys.exit(1 if judged.broken else 0)


def unlike(chance: random.Random, index: int) -> dict[str, Any]:
    """A request of emoji: with and without adapters, of several steps, samplers and pictures."""
    names = chance.choice([(), (), ("mosaic",), ("line-drawing",), ("mosaic", "line-drawing")])
    return {
        "prompt": chance.choice(["red apple", "blue dog", "green tree", "yellow star"]),
        "seed": index,
        "steps": chance.choice([3, 5, 8, 12]),
        "count": chance.choice([1, 1, 1, 2]),
        "sampler": chance.choice(["dpmpp_2m", "euler", "euler_a", "heun"]),
        "guidance_scale": chance.choice([1.0, 4.0, 7.0]),
        "adapters": [{"source": name} for name in names],
        "mode": "reproducible",
        "reuse": False,
    }


def undisturbed(data: Path, requests: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The hashes that each request draws where nothing happens."""
    service = Service(data=data, log=data.with_suffix(".log"))
    service.start()
    try:
        with httpx.Client(base_url=service.address, timeout=30) as client:
            for index, request in enumerate(requests):
                put(client, f"job-{index}", request, time.monotonic() + PATIENCE_S)
        wait_for(service.store, len(requests))
        return [hashes(service.store.job(f"job-{index}", key_of(service.store))) for index in range(len(requests))]
    finally:
        service.stop()


def disturb(service: Service, requests: Sequence[dict[str, Any]], options: Any, chance: random.Random) -> int:
    """Submits the jobs and disturbs the service meanwhile; how many were submitted."""
    submitted, disturbed, sampled = 0, 0, 0.0
    started, last = time.monotonic(), time.monotonic() + options.minutes * 60
    every = options.jobs / (options.kills + 1)
    with httpx.Client(base_url=service.address, timeout=10) as client:
        while True:
            now = time.monotonic()
            waiting = len(service.store.queue())
            finished = submitted - waiting
            if submitted < options.jobs and now < last and waiting < AHEAD:
                put(client, f"job-{submitted}", requests[submitted % len(requests)], now + PATIENCE_S)
                submitted += 1
                continue
            if not waiting and (submitted == options.jobs or now >= last):
                return submitted
            if disturbed < options.kills and finished >= every * (disturbed + 1):
                time.sleep(chance.random())  # at whatever is being done then
                service.disturb(chance)
                disturbed += 1
            if now - sampled > 5:
                sampled = now
                service.sample()
                sys.stderr.write(f"\r{now - started:.0f} s: {finished} of {submitted} done, {dict(service.done)}  ")
            if now - started > PATIENCE_S + 60 * min(options.minutes, 1e6):
                raise RuntimeError("the jobs are never done")
            time.sleep(0.05)


def judge(
    store: Store,
    requests: Sequence[dict[str, Any]],
    expected: Sequence[tuple[str, ...]],
    count: int,
    killed_at: Sequence[float],
) -> Judged:
    """Compares what became of the jobs with what was promised."""
    lost: list[str] = []
    doubled: list[str] = []
    different: list[str] = []
    gaps: list[str] = []
    resumed = computed = twice = 0
    started: list[float] = []
    key = key_of(store)
    for index in range(count):
        job = store.job(f"job-{index}", key)
        events = store.events(job.id, limit=100_000)
        if job.state is not JobState.SUCCEEDED or job.result is None:
            lost.append(f"{job.id} ({job.state}, {job.failure})")
            continue
        if sum(event.kind in FINAL for event in events) != 1:
            doubled.append(job.id)
        if hashes(job) != expected[index % len(requests)]:
            different.append(job.id)
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            gaps.append(job.id)
        resumed += job.result.replayed_steps > 0
        computed += job.work.steps
        twice += again(events)
        started += [event.at for event in events if event.kind == "started"]
    return Judged(
        jobs=count,
        lost=lost,
        doubled=doubled,
        different=different,
        gaps=gaps,
        resumed=resumed,
        computed=computed,
        twice=twice,
        away_s=sorted(min((at - killed for at in started if at > killed), default=0.0) for killed in killed_at),
    )


def again(events: Sequence[Any]) -> int:
    """Steps that were computed again: for each claim after the first, the one that was in the works, and those between
    where the job was and where it went on."""
    found, reached, claims = 0, 0, 0
    entered = False
    for event in events:
        if event.kind == "started":
            claims, entered = claims + 1, claims > 0
        elif event.kind == "progress" and event.data.get("step", 0):
            if entered:
                found += 1 + max(0, reached - event.data["step"])
                entered = False
            reached = event.data["step"]
    return found


def hashes(job: Job) -> tuple[str, ...]:
    return () if job.result is None else tuple(picture.sha256 for picture in job.result.pictures)


def key_of(store: Store) -> str:
    """Of the client without a key."""
    return store.jobs(limit=1)[0].key


def wait_for(store: Store, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while store.queue() or len(store.jobs(limit=count)) < count:
        if time.monotonic() > until:
            raise RuntimeError("the undisturbed jobs are never done")
        time.sleep(0.2)


def said(options: Any, judged: Judged, service: Service, minutes: float, log: str) -> list[str]:
    """The lines of the page."""
    more = " --postgresql" * options.postgresql
    command = f"python -m benchmarks.serving.soak --jobs {options.jobs} --kills {options.kills} --seed {options.seed}"
    command += more + (f" --minutes {options.minutes:g}" if options.minutes < float("inf") else "")
    machine = f", {options.machine}" if options.machine else ""
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(service.done.items())) or "none"
    return [
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}{machine}, {minutes:.0f} minutes.",
        "",
        f"- {judged.jobs} jobs; {sum(service.done.values())} disturbances: {kinds}",
        f"- lost: {len(judged.lost)}; finished twice: {len(judged.doubled)}; other bytes than undisturbed: "
        f"{len(judged.different)}; events with gaps: {len(judged.gaps)}",
        f"- {judged.resumed} jobs went on inside a picture; steps computed twice: {judged.twice} of {judged.computed} "
        f"({judged.twice / max(1, judged.computed):.1%})",
        *restarts(judged.away_s),
        f"- results that came after a lease was lost and were refused: {log.count(LATE)}",
        *growth(service.samples),
    ]


def restarts(away_s: Sequence[float]) -> list[str]:
    if not away_s:
        return []
    return [
        f"- from `kill -9` of a worker to the next one's first job: median {away_s[len(away_s) // 2]:.1f} s, "
        f"at most {away_s[-1]:.1f} s"
    ]


def growth(samples: Sequence[Sample]) -> list[str]:
    """The most that was held in the second and in the last quarter of the time."""
    if len(samples) < 8:
        return []
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]

    def most(part: str, of: Sequence[Sample]) -> str:
        memory = max((one.rss.get(part, 0) for one in of), default=0)
        return f"{memory / 2**20:.0f} MiB, {max((one.files.get(part, 0) for one in of), default=0)} files"

    wal = [max(one.wal for one in of) / 2**20 for of in (early, late)]
    return [
        *(f"- {part}: {most(part, early)}; at the end {most(part, late)}" for part in ("supervisor", "API", "worker")),
        f"- write-ahead log: {wal[0]:.1f} MiB; at the end {wal[1]:.1f} MiB",
    ]


if __name__ == "__main__":
    main()
