"""Several processes, and processes that are killed."""

import subprocess
import sys

from sqlalchemy import create_engine, text

from tests.serving.jobs_for_tests import a_job
from undertow.serving.jobs import JobState
from undertow.serving.store.store import Store


def started(role, name, *urls):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.serving.store_process", role, name, *urls],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(*processes):
    """Lets them begin together."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def test_two_workers_never_claim_the_same_job(sqlite_url, postgres_url):
    accepted = []
    for url in (sqlite_url, postgres_url):
        store = Store.open(url)
        accepted += [one.job.id for one in store.submit_batch([a_job(str(n)) for n in range(60)])]
        store.close()
    with (
        started("claim", "w1", sqlite_url, postgres_url) as one,
        started("claim", "w2", sqlite_url, postgres_url) as two,
    ):
        go(one, two)
        claimed = [[line.split() for line in worker.communicate()[0].splitlines()] for worker in (one, two)]
    assert sorted(id for lines in claimed for id, _ in lines) == sorted(accepted)
    assert {fence for lines in claimed for _, fence in lines} == {"1"}
    assert all(claimed)  # both had some


def test_what_a_killed_process_was_promised_is_there_and_nothing_is_half_done(sqlite_url):
    with started("all", "w1", sqlite_url) as process:
        go(process)
        lines = [process.stdout.readline() for _ in range(40)]
        process.kill()
        lines += process.stdout.readlines()
    promised = [line.split() for line in lines if line.endswith("\n")]
    store = Store.open(sqlite_url)
    there = {job.id: job for job in store.jobs(limit=1000)}
    assert {id for what, id in promised if what == "accepted"} <= set(there)
    assert all(there[id].state == JobState.SUCCEEDED for what, id in promised if what == "published")
    kinds = {
        JobState.QUEUED: ["accepted"],
        JobState.RUNNING: ["accepted", "started"],
        JobState.SUCCEEDED: ["accepted", "started", "succeeded"],
    }
    for job in there.values():
        assert [event.kind for event in store.events(job.id)] == kinds[job.state]
    store.close()
    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        counts = "SELECT (SELECT count(*) FROM specs), (SELECT count(*) FROM uses), (SELECT count(*) FROM artifacts)"
        done = sum(job.state == JobState.SUCCEEDED for job in there.values())
        assert tuple(connection.execute(text(counts)).one()) == (len(there), done, done)
    engine.dispose()
