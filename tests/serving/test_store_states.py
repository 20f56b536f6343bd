"""Random histories of the store beside a model of what it promises, on both databases.

`make store-soak` runs many more of them.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.serving.conftest import Clock, empty
from tests.serving.store_model import FINAL, Model, ModelJob
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import JobProgress, JobResult, JobSpec, NewJob, StoredPicture
from undertow.serving.store.records import ClientIdConflict, IdempotencyConflict, QueueFull, QueueLimits
from undertow.serving.store.store import Store

EXAMPLES = int(os.environ.get("UNDERTOW_STORE_EXAMPLES", "12"))
STEPS = 25

LEASE_S, KEEP_S, ATTEMPTS = 30.0, 100.0, 4
LIMITS = QueueLimits(total=5, per_key=3)

keys, specs, workers = st.sampled_from("AB"), st.sampled_from("pqrst"), st.sampled_from(("w1", "w2"))
sometimes = st.sampled_from((None, None, "x", "y"))


class Histories(RuleBasedStateMachine):
    """Clients and two workers, whose claims may be old. Subclasses say where the database is."""

    url: str
    folder: Path

    @initialize(taken=st.integers(0, 3))
    def begin(self, taken):
        """With jobs that wait and jobs that run, so that even a short history has something to go wrong."""
        self.clock = Clock()
        self.model = Model(ATTEMPTS, KEEP_S, LIMITS.total, LIMITS.per_key)
        self.claims = []
        self.artifacts = ArtifactFolder(self.folder / "files")
        self.reset()
        self.open()
        for key, spec in ("Ap", "Bp", "Aq"):
            self.send(key, spec)
        self.take("w1", taken, last=False)

    def reset(self):
        raise NotImplementedError

    def open(self):
        self.store = Store.open(
            self.url, clock=self.clock, attempts=ATTEMPTS, keep_s=KEEP_S, logged=self.artifacts.logged
        )

    @rule(
        key=keys,
        spec=specs,
        idempotency_key=sometimes,
        client_id=sometimes,
        priority=st.integers(0, 1),
        soon=st.booleans(),
    )
    def submit(self, key, spec, idempotency_key, client_id, priority, soon):
        self.send(key, spec, idempotency_key, client_id, priority, soon)

    def send(self, key, spec, idempotency_key=None, client_id=None, priority=0, soon=False):
        self.clock.jump(0.001)
        deadline = self.clock.now + 40 if soon else None
        new = NewJob(
            key=key,
            spec=JobSpec(model="m", request={"prompt": spec}),
            idempotency_key=idempotency_key,
            body_hash=spec,
            client_id=client_id,
            priority=priority,
            deadline_at=deadline,
        )
        expected = self.model.accepts(key, spec, idempotency_key, client_id)
        try:
            got = self.store.submit(new, LIMITS)
        except (IdempotencyConflict, ClientIdConflict, QueueFull) as err:
            got = type(err).__name__
        if isinstance(expected, str):
            assert got == expected
            return
        if isinstance(expected, ModelJob):
            assert (got.job.id, got.created) == (expected.id, False)
            return
        assert expected is None
        assert got.created
        assert got.job.id not in self.model.jobs
        self.model.add(
            ModelJob(got.job.id, key, spec, idempotency_key, client_id, priority, deadline, self.clock.now),
            self.clock.now,
        )
        assert got.job == self.store.job(got.job.id, key)
        assert (got.job.result is not None and got.job.result.reused) == self.model.jobs[got.job.id].reused

    @rule(worker=workers, wanted=st.integers(1, 3), last=st.booleans())
    def claim(self, worker, wanted, last):
        self.take(worker, wanted, last)

    def take(self, worker, wanted, last):
        shown = []

        def pick(entries):
            shown.extend(one.id for one in entries)
            return [*(reversed(shown) if last else shown)][:wanted]

        taken = self.store.claim(worker, pick, LEASE_S)
        self.model.expire_leases(self.clock.now)
        self.model.expire_waiting(self.clock.now)
        order = [job.id for job in self.model.waiting()]
        assert shown == order
        expected = [*(reversed(order) if last else order)][:wanted]
        assert [claim.job.id for claim in taken] == expected
        for claim in taken:
            job = self.model.jobs[claim.job.id]
            self.model.claim(job, worker, self.clock.now, LEASE_S)
            assert claim.fence == job.fence
        self.claims += taken

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), step=st.integers(0, 2))
    def heartbeat(self, data, step):
        """Of several claims at once, old ones among them."""
        self.beat({one.job.id: one for one in (self.some_claim(data) for _ in range(3))}.values(), step)

    def beat(self, some, step):
        beats = [(claim, JobProgress(stage="denoising", step=step, steps=2)) for claim in some]
        verdicts = self.store.heartbeat("w1", beats, lease_s=LEASE_S)
        for claim, verdict in zip(some, verdicts, strict=True):
            job = self.model.jobs.get(claim.job.id)
            alive = self.model.holds(job, claim.fence)
            assert (verdict.job, verdict.alive) == (claim.job.id, alive)
            if alive:
                assert verdict.cancel_requested == job.cancel
                assert verdict.deadline_passed == (job.deadline is not None and job.deadline <= self.clock.now)
                job.lease_until = self.clock.now + LEASE_S
                if job.progress != ("denoising", step):
                    job.progress = "denoising", step
                    job.events.append("progress")

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), size=st.integers(1, 3))
    def log(self, data, size):
        """Also by a claim that does not know yet that it lost its job."""
        claim = self.some_claim(data)
        self.artifacts.claim_log_path(claim.job.id, claim.fence).write_bytes(bytes(size))
        job = self.model.jobs.get(claim.job.id)
        if self.model.holds(job, claim.fence):
            job.log = size

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def publish(self, data):
        self.write(self.some_claim(data), "publish")

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), how=st.sampled_from(("fail", "cancelled", "expire_job")))
    def give_up(self, data, how):
        self.write(self.some_claim(data), how)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data):
        self.write(self.some_claim(data), "release")

    def write(self, claim, how):
        """Every write of a worker, under an old fence as well."""
        job = self.model.jobs.get(claim.job.id)
        holds = self.model.holds(job, claim.fence)
        states = {"publish": "succeeded", "fail": "failed", "cancelled": "canceled", "expire_job": "expired"}
        # The same write again by the same claim, whose first answer may have been lost, is no lost fence.
        again = job is not None and (job.state, job.fence, job.worker) == (states.get(how), claim.fence, claim.worker)
        written = getattr(self, f"store_{how}")(claim)
        if not holds:
            assert written == again
        elif how in ("publish", "release") and job.cancel:
            self.model.end(job, "canceled", self.clock.now)
            assert written == (how == "release")
        elif how == "release":
            self.model.requeue(job)
            assert written
        else:
            self.model.end(job, states[how], self.clock.now)
            assert written

    def store_publish(self, claim):
        content = claim.job.spec.request["prompt"].encode()
        sha256 = self.artifacts.put(content)
        picture = StoredPicture(sha256=sha256, media_type="image/png", bytes=1, width=1, height=1, seed=0)
        return self.store.publish(claim, JobResult(pictures=(picture,)))

    def store_fail(self, claim):
        return self.store.fail(claim, Failure(code=FailureCode.NON_FINITE, detail="NaN"))

    def store_cancelled(self, claim):
        return self.store.cancelled(claim)

    def store_expire_job(self, claim):
        return self.store.expire_job(claim)

    def store_release(self, claim):
        return self.store.release(claim)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), done=st.booleans())
    def cancel(self, data, done):
        """done: the worker had just finished it."""
        jobs = list(self.model.jobs.values())
        live = [job for job in jobs if job.state == data.draw(st.sampled_from(("queued", "running", "running")))]
        job = data.draw(st.sampled_from(live or jobs))
        before = job.state
        got = self.store.cancel(job.id, job.key)
        if before == "queued":
            self.model.end(job, "canceled", self.clock.now)
        elif before == "running" and not job.cancel:
            job.cancel = True
            job.events.append("progress")
        assert got.state == job.state
        held = [one for one in self.claims if one.job.id == job.id and self.model.holds(job, one.fence)]
        if held and done:
            self.write(held[0], "publish")

    @rule(data=st.data(), how=st.sampled_from(("publish", "publish", "fail", "cancelled", "release", "beat")))
    def wake_after_the_lease(self, data, how):
        """A worker is paused; another takes what it held; it goes on as if nothing had happened."""
        if not self.model.waiting():
            self.send("B", str(len(self.model.jobs)))
        self.take("w1", 1, last=False)
        self.clock.jump(LEASE_S)
        self.take("w2", 2, last=False)
        if not self.claims:  # it was the last attempt
            return
        if how == "beat":
            self.beat([self.some_claim(data)], 1)
        else:
            self.write(self.some_claim(data), how)

    def some_claim(self, data):
        """One that holds its job as often as one that lost it."""
        jobs = self.model.jobs
        held = [one for one in self.claims if self.model.holds(jobs.get(one.job.id), one.fence)]
        stolen = [
            one for one in self.claims if one not in held and one.job.id in jobs and jobs[one.job.id].state == "running"
        ]
        kinds = [one for one in (stolen, held, self.claims) if one]
        return data.draw(st.sampled_from(data.draw(st.sampled_from(kinds))))

    @rule(
        what=st.sampled_from(("collect", "crash", "expire_leases", "expire_waiting", "bury")),
        seconds=st.sampled_from((0.0, 1.0, LEASE_S / 2, LEASE_S, KEEP_S)),
    )
    def upkeep(self, what, seconds):
        """Time passes, and something is done that nobody asked for."""
        self.clock.jump(seconds)
        getattr(self, what)()

    def collect(self):
        self.store.collect_garbage(self.artifacts, older_than_s=0.0)
        self.model.collect(self.clock.now)

    def crash(self):
        """A process that dies keeps nothing; what it wrote is there for the next."""
        self.store.close()
        self.open()

    def expire_leases(self):
        self.store.expire_leases()
        self.model.expire_leases(self.clock.now)

    def expire_waiting(self):
        self.store.expire_waiting()
        self.model.expire_waiting(self.clock.now)

    def bury(self):
        """A worker is known to be dead before its leases are over."""
        self.store.expire_leases("w1")
        self.model.expire_leases(self.clock.now, "w1")

    @invariant()
    def states_are_those_of_the_model(self):
        found = {job.id: job for job in self.store.jobs(limit=1000)}
        assert list(found) == sorted(self.model.jobs, reverse=True)
        for id, job in found.items():
            progress = (job.progress.stage, job.progress.step)
            said = (job.state, job.fence, job.worker, job.attempt, job.alone, job.cancel_requested, progress)
            assert said == self.model.jobs[id].seen
            assert (job.result is not None) == (job.state == "succeeded")
            assert (job.failure is not None) == (job.state in ("failed", "expired"))
        waiting = [one.id for one in self.store.queue() if one.state == "queued"]
        assert waiting == [job.id for job in self.model.waiting()]

    def teardown(self):
        """Events tell the whole life of each job in order without gaps, with one end; pictures are there."""
        if not hasattr(self, "store"):
            return
        for id, job in self.model.jobs.items():
            events = self.store.events(id)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert [event.kind for event in events] == job.events
            assert sum(event.kind in FINAL for event in events) == (job.state in FINAL)
            result = self.store.job(id, job.key).result
            for picture in result.pictures if result is not None else ():
                assert self.artifacts.read(picture.sha256) == job.spec.encode()
                assert self.store.artifact(picture.sha256, job.key).sha256 == picture.sha256
        self.store.close()


def run(machine, examples):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(0 if EXAMPLES > 20 else 300)
def test_histories_on_sqlite(sqlite_template, memory_folder):
    class OnSqlite(Histories):
        def reset(self):
            shutil.rmtree(self.folder / "files")
            self.artifacts = ArtifactFolder(self.folder / "files")
            for old in self.folder.glob("undertow.db*"):
                old.unlink()
            shutil.copy(sqlite_template, self.folder / "undertow.db")

    with tempfile.TemporaryDirectory(dir=memory_folder) as folder:
        OnSqlite.folder, OnSqlite.url = Path(folder), f"sqlite:///{folder}/undertow.db"
        run(OnSqlite, EXAMPLES)


@pytest.mark.timeout(0 if EXAMPLES > 20 else 300)
def test_histories_on_postgresql(postgres_server, memory_folder):
    class OnPostgresql(Histories):
        def reset(self):
            shutil.rmtree(self.folder / "files")
            self.artifacts = ArtifactFolder(self.folder / "files")
            empty(postgres_server)

    with tempfile.TemporaryDirectory(dir=memory_folder) as folder:
        OnPostgresql.folder, OnPostgresql.url = Path(folder), postgres_server
        run(OnPostgresql, EXAMPLES // 2)  # a server takes twice as long
