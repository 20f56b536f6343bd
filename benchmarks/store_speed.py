"""How long it takes until an accepted job is on the disk, while a worker process claims, beats and publishes beside it.

    python benchmarks/store_speed.py [--rate 100] [--seconds 20] [--prompt-bytes 2000] [--database URL] [--folder DIR]

An open loop: submissions come at random times (Poisson) at this rate, whatever the store does meanwhile, so a slow one
makes the next wait; latency counts from when a submission was due. The table has percentiles of submitting, and of the
operations of the worker, which draws nothing; and beside them one bare commit of SQLite, and of fsync, on this disk.
"""

import argparse
import os
import random
import sqlite3
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from undertow.serving.jobs import JobProgress, JobResult, JobSpec, NewJob, StoredPicture
from undertow.serving.store.records import QueueLimits
from undertow.serving.store.store import Store

STEPS = 5
AT_ONCE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, help="submissions in a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--prompt-bytes", type=int, default=2000)
    parser.add_argument("--database", help="URL; a SQLite file in a folder that is removed afterwards when left out")
    parser.add_argument("--folder", type=Path, help="where that folder is made")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as folder:
        url = options.database or f"sqlite:///{folder}/undertow.db"
        print(f"seed {options.seed}, {url.split(':')[0]}, {options.rate:g} a second for {options.seconds:g} s")
        rows = {"fsync": fsyncs(Path(folder)), "bare commit": commits(Path(folder))}
        rows |= measured(url, options)
    print(f"{'milliseconds':<14} {'count':>6} {'median':>8} {'p95':>8} {'p99':>8} {'most':>8}")
    for name, times in rows.items():
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        shown = (statistics.median(times), cuts[94], cuts[98], max(times))
        print(f"{name:<14} {len(times):>6} " + " ".join(f"{1e3 * one:>8.1f}" for one in shown))


def measured(url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each operation."""
    context = get_context("spawn")
    stop, answers = context.Event(), context.Queue()
    store = Store.open(url)
    worker = context.Process(target=work, args=(url, stop, answers))
    worker.start()
    answers.get()  # it is ready
    due, latencies, lock = arrivals(options.rate, options.seconds, options.seed), [], threading.Lock()
    start = time.perf_counter() + 0.1

    def submit(number: int, at: float) -> None:
        store.submit(a_job(number, options.prompt_bytes), QueueLimits(total=10**6, per_key=10**6))
        with lock:
            latencies.append(time.perf_counter() - start - at)

    with ThreadPoolExecutor(max_workers=40) as threads:
        for number, at in enumerate(due):
            time.sleep(max(0.0, start + at - time.perf_counter()))
            threads.submit(submit, number, at)
    stop.set()
    operations = answers.get()
    worker.join()
    store.close()
    return {"submit": latencies, **operations}


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process."""
    generator, at, times = random.Random(seed), 0.0, []
    while (at := at + generator.expovariate(rate)) < seconds:
        times.append(at)
    return times


def a_job(number: int, prompt_bytes: int) -> NewJob:
    request = {"prompt": f"{number} ".ljust(prompt_bytes, "x"), "seed": number}
    return NewJob(key=f"key{number % 5}", spec=JobSpec(model="emoji", request=request), idempotency_key=str(number))


def work(url: str, stop, answers) -> None:
    """A worker that takes what there is, beats for each step, and publishes."""
    store, times = Store.open(url), {"claim": [], "heartbeat": [], "publish": []}
    answers.put("ready")

    def timed(name, function, *args, **named):
        start = time.perf_counter()
        value = function(*args, **named)
        times[name].append(time.perf_counter() - start)
        return value

    while not stop.is_set():
        claims = timed("claim", store.claim, "worker", lambda waiting: [one.id for one in waiting[:AT_ONCE]], 30.0)
        for step in range(STEPS if claims else 0):
            beats = [(claim, JobProgress(stage="denoising", step=step + 1, steps=STEPS)) for claim in claims]
            timed("heartbeat", store.heartbeat, "worker", beats, lease_s=30.0)
            time.sleep(0.01)
        for claim in claims:
            picture = StoredPicture(sha256=claim.job.spec_hash, media_type="", bytes=1, width=1, height=1, seed=0)
            timed("publish", store.publish, claim, JobResult(pictures=(picture,)))
        time.sleep(0.01)
    store.close()
    answers.put(times)


def fsyncs(folder: Path) -> list[float]:
    """Seconds of a write of a page and its fsync."""
    with (folder / "page").open("wb") as file:
        return [seconds(lambda: (file.write(bytes(4096)), file.flush(), os.fsync(file.fileno()))) for _ in range(100)]


def commits(folder: Path) -> list[float]:
    """Seconds of the smallest transaction that SQLite keeps."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE numbers (n INTEGER)")
    times = [seconds(lambda: connection.execute("INSERT INTO numbers VALUES (1)")) for _ in range(100)]
    connection.close()
    return times


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
