"""The store, on both databases: what random histories (test_store_states.py) do not look at."""

import threading
import time

import pytest
from sqlalchemy import Engine, event

from tests.serving.jobs_for_tests import a_job, a_result, everything
from undertow.errors import InvalidInput
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import JobProgress, JobState, JobWork, StoredFile
from undertow.serving.store.records import (
    ArtifactNotFound,
    ClientIdConflict,
    IdempotencyConflict,
    JobNotFound,
    QueueFull,
    QueueLimits,
    Verdict,
)
from undertow.serving.store.store import Store


def claimed(store, *jobs, worker="w1", lease_s=30.0):
    submitted = [store.submit(job).job.id for job in jobs]
    return store.claim(worker, lambda entries: submitted, lease_s)


@pytest.fixture
def statements():
    """What is executed from now on."""
    seen = []

    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def test_a_job_comes_back_as_it_was_given(any_store):
    spoken = {"prompt": "snow \N{SNOWMAN} \0 \ud800", "seed": 2**63, "cfg": 7.5}
    new = a_job(
        work=JobWork(cells=64, rows=4, steps=20, pictures=2), cost=80.0, priority=-3, client_id="mine", label="{}",
        deadline_at=2e9, finish_at=1.9e9, webhook="https://example.org/x", traceparent="00-1-2-01", batch="b",
    )  # fmt: skip
    new.spec.request.update(spoken)
    accepted = any_store.submit(new).job
    assert any_store.job(accepted.id) == any_store.job("mine", "A") == accepted
    assert (accepted.spec, accepted.work, accepted.label, accepted.webhook) == (new.spec, new.work, "{}", new.webhook)
    assert accepted.id.startswith("job_")
    assert len(accepted.id) == 30
    entry = any_store.queue()[0]
    assert (entry.id, entry.model, entry.work, entry.cost, entry.priority) == (accepted.id, "m", new.work, 80.0, -3)


def test_who_asks_again_gets_the_same_job_or_learns_which_it_was(any_store):
    first = any_store.submit(a_job(idempotency_key="k", body_hash="1", client_id="c")).job
    again = any_store.submit(a_job(idempotency_key="k", body_hash="1", client_id="c"))
    assert (again.job.id, again.created) == (first.id, False)
    with pytest.raises(IdempotencyConflict, match=first.id):
        any_store.submit(a_job(idempotency_key="k", body_hash="2"))
    with pytest.raises(ClientIdConflict, match=first.id):
        any_store.submit(a_job("pear", client_id="c"))
    named = any_store.submit(a_job(client_id="d", body_hash="1")).job
    same = any_store.submit(a_job("pear", client_id="d", body_hash="1"))
    assert (same.job.id, same.created) == (named.id, False), "of the same body, though a default has changed since"
    other = any_store.submit(a_job("pear", key="B", idempotency_key="k", body_hash="2", client_id="c"))
    assert other.created  # names of one key are nothing to another


def test_a_job_of_another_key_is_not_there(any_store):
    job = any_store.submit(a_job()).job
    for ask in (any_store.job, any_store.cancel):
        with pytest.raises(JobNotFound):
            ask(job.id, "B")
    assert any_store.jobs("B") == []
    assert any_store.job(job.id).state == JobState.QUEUED
    with pytest.raises(JobNotFound, match="job_none"):
        any_store.job("job_none")


def test_a_full_queue_says_how_full(any_store):
    limits = QueueLimits(total=3, per_key=2)
    for key in "AAB":
        any_store.submit(a_job(key=key), limits)
    with pytest.raises(QueueFull, match=r"3 jobs wait, and at most 3 may") as full:
        any_store.submit(a_job(key="C"), limits)
    assert (full.value.waiting, full.value.limit, full.value.of_key) == (3, 3, False)
    with pytest.raises(QueueFull) as full:
        any_store.submit(a_job(), QueueLimits(total=9, per_key=2))
    assert (full.value.waiting, full.value.limit, full.value.of_key) == (2, 2, True)


def test_a_batch_is_accepted_whole_or_not_at_all(any_store):
    with pytest.raises(QueueFull):
        any_store.submit_batch([a_job(str(n)) for n in range(3)], QueueLimits(total=2))
    assert any_store.jobs() == []
    accepted = [one.job for one in any_store.submit_batch([a_job(str(n)) for n in range(3)])]
    batch = accepted[0].batch
    assert batch is not None
    assert any_store.jobs("A", batch=batch) == accepted[::-1]  # the newest first


def test_lists_have_pages_and_filters(any_store):
    ids = [any_store.submit(a_job(str(n), label="even" if n % 2 == 0 else "odd")).job.id for n in range(5)]
    any_store.cancel(ids[0], "A")
    first = any_store.jobs("A", limit=2)
    rest = any_store.jobs("A", before=first[-1].id)
    assert [job.id for job in first + rest] == ids[::-1]
    assert [job.id for job in any_store.jobs(label="even")] == [ids[4], ids[2], ids[0]]
    assert [job.id for job in any_store.jobs(states=[JobState.CANCELED])] == ids[:1]


def test_looking_at_the_queue_reads_no_request(any_store, statements):
    any_store.submit(a_job())
    statements.clear()
    any_store.queue()
    assert statements
    assert not any("spec" in one for one in statements if "FROM" in one)


def test_a_heartbeat_is_as_many_statements_for_eight_jobs_as_for_one(any_store, statements):
    claims = claimed(any_store, *(a_job(str(n)) for n in range(8)))
    any_store.submit(a_job("waits"))
    counts = []
    for some in (claims[:1], claims):
        statements.clear()
        beats = [(claim, JobProgress(stage="denoising", step=len(some), steps=20)) for claim in some]
        any_store.heartbeat("w1", beats, lease_s=30.0, finish_at={one.job.id: 5.0 * len(some) for one in claims})
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_a_heartbeat_tells_both_sides(any_store, clock):
    (claim,) = claimed(any_store, a_job(deadline_at=clock.now + 10))
    waits = any_store.submit(a_job("waits")).job.id
    any_store.want_preview(claim.job.id, clock.now + 5)
    clock.jump(1)
    beat = [(claim, JobProgress(stage="denoising", step=3, steps=20))]
    (verdict,) = any_store.heartbeat("w1", beat, lease_s=30.0, finish_at={claim.job.id: 7.0, waits: 9.0})
    assert verdict == Verdict(job=claim.job.id, alive=True, preview_wanted=True)
    assert [any_store.job(one).finish_at for one in (claim.job.id, waits)] == [7.0, 9.0]
    assert {entry.promised_at for entry in any_store.queue()} == {None}, "what was promised at first stays"
    assert {entry.id: entry.beat_at for entry in any_store.queue()} == {claim.job.id: any_store.clock(), waits: None}
    assert any_store.events(claim.job.id)[-1].data == {
        "stage": "denoising", "step": 3, "steps": 20, "pictures": 0, "finish_at": 7.0,
    }  # fmt: skip
    clock.jump(1)
    any_store.heartbeat("w1", beat, lease_s=30.0)
    (running,) = [entry for entry in any_store.queue() if entry.id == claim.job.id]
    assert running.beat_at == any_store.clock() - 1, "it has been so far since then"
    clock.jump(9)
    any_store.cancel(claim.job.id)
    assert [entry.cancel_requested for entry in any_store.queue() if entry.id == claim.job.id] == [True]
    expected = [Verdict(job=claim.job.id, alive=True, cancel_requested=True, deadline_passed=True)]
    assert any_store.verdicts([claim]) == expected
    assert any_store.heartbeat("w1", beat, lease_s=30.0) == expected
    any_store.cancelled(claim)
    assert any_store.verdicts([claim]) == [Verdict(job=claim.job.id, alive=False)]


def test_jobs_that_were_lost_together_are_tried_alone_until_one_is_the_poison(database_url, clock):
    seen = []
    store = Store.open(database_url, clock=clock, attempts=2, observe=lambda *what: seen.append(what[:2]))
    healthy, poison = [claim.job.id for claim in claimed(store, a_job("healthy"), a_job("poison"))]
    newer = store.submit(a_job("newer", priority=10)).job.id
    store.expire_leases("w1")  # its supervisor saw it die
    entries = [(one.id, one.alone, one.attempt) for one in store.queue()]
    assert entries == [(healthy, True, 1), (poison, True, 1), (newer, False, 0)]
    (first,) = store.claim("w2", lambda waiting: [healthy], 30.0)
    assert store.publish(first, a_result())
    store.claim("w2", lambda waiting: [poison], 30.0)
    store.expire_leases("w2")
    failure = store.job(poison).failure
    assert failure is not None
    assert failure.code == FailureCode.POISON
    assert failure.fault == "engine"
    assert seen.count(("lost", "lease")) == 3
    assert seen.count(("poison", "lease")) == 1
    assert ("seconds", "submit") in seen
    store.close()


def test_a_worker_that_was_paused_past_its_lease_cannot_publish(database_url, clock):
    seen = []
    store = Store.open(database_url, clock=clock, observe=lambda *what: seen.append(what))
    (old,) = claimed(store, a_job())
    clock.jump(31)
    (new,) = store.claim("w2", everything, 30.0)
    assert not store.publish(old, a_result("b" * 64))
    assert ("fence", "publish", 1) in seen
    assert store.publish(new, a_result())
    result = store.job(old.job.id).result
    assert result is not None
    assert [one.sha256 for one in result.pictures] == ["a" * 64]
    with pytest.raises(ArtifactNotFound):
        store.artifact("b" * 64)
    store.close()


def test_pictures_that_were_drawn_before_are_the_answer(any_store):
    (claim,) = claimed(any_store, a_job())
    any_store.publish(claim, a_result())
    again = any_store.submit(a_job(), QueueLimits(total=0, per_key=0)).job  # it need not wait
    assert (again.state, again.result.reused) == (JobState.SUCCEEDED, True)
    assert [one.kind for one in any_store.events(again.id)] == ["accepted", "succeeded"]
    assert again.result.pictures == a_result().pictures
    for other in (a_job(key="B"), a_job(reuse=False), a_job("pear")):
        assert any_store.submit(other).job.state == JobState.QUEUED


def test_a_picture_whose_file_somebody_removed_is_drawn_again(database_url):
    there = {"a" * 64}
    store = Store.open(database_url, has_file=there.__contains__)
    (claim,) = claimed(store, a_job())
    store.publish(claim, a_result())
    there.clear()
    assert store.submit(a_job()).job.state == JobState.QUEUED
    store.close()


def test_artifacts_are_seen_by_those_who_drew_or_brought_them(any_store, clock):
    brought = StoredFile(sha256="c" * 64, media_type="image/png", bytes=4)
    any_store.upload("A", brought, keep_s=10.0)
    (claim,) = claimed(any_store, a_job(key="B"))
    any_store.publish(claim, a_result())
    assert any_store.artifact("c" * 64, "A") == brought
    assert any_store.artifact("a" * 64, "B").bytes == 3
    for sha256, key in (("c" * 64, "B"), ("a" * 64, "A"), ("d" * 64, None)):
        with pytest.raises(ArtifactNotFound):
            any_store.artifact(sha256, key)


def test_waiting_for_a_change_ends_when_another_process_makes_one(database_url):
    ours, others = Store.open(database_url), Store.open(database_url)
    seen = ours.changed(-1, 0.0)
    deadline = time.monotonic() + 20
    while (now := ours.changed(seen, 0.05)) != seen and time.monotonic() < deadline:
        seen = now  # what was noticed late
    assert ours.changed(seen, 0.02) == seen
    threading.Timer(0.05, lambda: others.submit(a_job())).start()
    assert ours.changed(seen, 20.0) != seen
    others.close()
    ours.close()


def test_webhooks_are_called_once_a_time_until_somebody_answers(any_store, clock):
    (claim,) = claimed(any_store, a_job(webhook="https://example.org/hook"))
    assert any_store.deliveries.take() == []
    any_store.publish(claim, a_result())
    any_store.cancel(any_store.submit(a_job("pear")).job.id)  # nobody wants to know
    (delivery,) = any_store.deliveries.take(lease_s=60.0)
    assert (delivery.job, delivery.url, delivery.attempt) == (claim.job.id, "https://example.org/hook", 0)
    assert any_store.deliveries.take() == []
    clock.jump(61)  # the process that took it died
    (delivery,) = any_store.deliveries.take()
    any_store.deliveries.retry(delivery.job, clock.now + 5)
    assert any_store.deliveries.take() == []
    clock.jump(6)
    assert any_store.deliveries.take()[0].attempt == 1
    any_store.deliveries.done(delivery.job)
    clock.jump(1000)
    assert any_store.deliveries.take() == []


@pytest.mark.parametrize("field", ["label", "client_id", "idempotency_key"])
@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_database_holds_is_refused_by_name(store, field, text):
    with pytest.raises(InvalidInput, match=field):
        store.submit(a_job(**{field: text}))


def test_threads_that_write_at_once_share_transactions_and_no_errors(sqlite_url):
    """Twenty threads, half of which submit what was submitted already under another body."""
    store, answers = Store.open(sqlite_url), []
    store.submit(a_job(idempotency_key="taken", body_hash="1"))
    start = threading.Barrier(20)

    def submit(number):
        start.wait()
        own = a_job(str(number), idempotency_key=str(number))
        try:
            new = own if number % 2 else a_job(idempotency_key="taken", body_hash="2")
            answers.append(store.submit(new).created)
        except IdempotencyConflict:
            answers.append("conflict")

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, answers)) == ["True"] * 10 + ["conflict"] * 10
    assert len(store.jobs()) == 11
    store.close()


def test_health_is_a_row_written(any_store):
    assert 0 < any_store.check() < 60


def test_a_failure_is_kept_with_its_cause(any_store):
    (claim,) = claimed(any_store, a_job())
    failure = Failure(code=FailureCode.NON_FINITE, detail="NaN in mid_block", origin="picture 0, step 3")
    assert any_store.fail(claim, failure)
    assert any_store.job(claim.job.id).failure == failure
    assert any_store.events(claim.job.id)[-1].data == {"code": "non_finite"}
