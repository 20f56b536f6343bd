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

EXAMPLES = int(os.environ.get("UNDERTOW_STORE_EXAMPLES", "16"))
STEPS = 30

LEASE_S, KEEP_S, ATTEMPTS = 30.0, 100.0, 3
LIMITS = QueueLimits(total=5, per_key=3)

keys, specs, workers = st.sampled_from("AB"), st.sampled_from("pqr"), st.sampled_from(("w1", "w2"))
sometimes = st.sampled_from((None, None, "x", "y"))


class Histories(RuleBasedStateMachine):
    """Clients and two workers, whose claims may be old. Subclasses say where the database is."""

    url: str
    folder: Path

    @initialize()
    def begin(self):
        self.clock = Clock()
        self.model = Model(ATTEMPTS, KEEP_S, LIMITS.total, LIMITS.per_key)
        self.claims = []
        self.artifacts = ArtifactFolder(self.folder / "files")
        self.reset()
        self.open()

    def reset(self):
        raise NotImplementedError

    def open(self):
        self.store = Store.open(self.url, clock=self.clock, attempts=ATTEMPTS, keep_s=KEEP_S)

    @rule(
        key=keys,
        spec=specs,
        idempotency_key=sometimes,
        client_id=sometimes,
        priority=st.integers(0, 1),
        soon=st.booleans(),
    )
    def submit(self, key, spec, idempotency_key, client_id, priority, soon):
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

    @rule(worker=workers, wanted=st.integers(0, 3), last=st.booleans())
    def claim(self, worker, wanted, last):
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
        """Of several claims at once, old ones among them; the newest of a job counts, as a worker keeps one of each."""
        some = data.draw(
            st.lists(st.sampled_from(self.claims), min_size=1, max_size=4, unique_by=lambda one: one.job.id)
        )
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
    @rule(data=st.data(), how=st.sampled_from(("publish", "publish", "fail", "cancelled", "expire_job", "release")))
    def write(self, data, how):
        """Every write of a worker, under an old fence as well."""
        claim = data.draw(st.sampled_from(self.claims))
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
    @rule(data=st.data())
    def cancel(self, data):
        job = data.draw(st.sampled_from(list(self.model.jobs.values())))
        before = job.state
        got = self.store.cancel(job.id, job.key)
        if before == "queued":
            self.model.end(job, "canceled", self.clock.now)
        elif before == "running" and not job.cancel:
            job.cancel = True
            job.events.append("progress")
        assert got.state == job.state

    @rule(seconds=st.sampled_from((1.0, LEASE_S / 2, LEASE_S, KEEP_S)))
    def wait(self, seconds):
        self.clock.jump(seconds)

    @rule(worker=st.sampled_from((None, None, "w1", "w2")))
    def expire_leases(self, worker):
        self.store.expire_leases(worker)
        self.model.expire_leases(self.clock.now, worker)

    @rule()
    def expire_waiting(self):
        self.store.expire_waiting()
        self.model.expire_waiting(self.clock.now)

    @rule()
    def collect(self):
        self.store.collect_garbage(self.artifacts, older_than_s=0.0)
        self.model.collect(self.clock.now)

    @rule()
    def crash(self):
        """A process that dies keeps nothing; what it wrote is there for the next."""
        self.store.close()
        self.open()

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


def run(machine):
    # On SQLite and PostgreSQL together this may take 12 s of CI.
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
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
        run(OnSqlite)


@pytest.mark.timeout(0 if EXAMPLES > 20 else 300)
def test_histories_on_postgresql(postgres_server, memory_folder):
    class OnPostgresql(Histories):
        def reset(self):
            shutil.rmtree(self.folder / "files")
            self.artifacts = ArtifactFolder(self.folder / "files")
            empty(postgres_server)

    with tempfile.TemporaryDirectory(dir=memory_folder) as folder:
        OnPostgresql.folder, OnPostgresql.url = Path(folder), postgres_server
        run(OnPostgresql)
