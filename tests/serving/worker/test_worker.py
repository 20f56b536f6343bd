"""The worker's loop: the same bytes whatever else runs and whatever dies, and each failure with its own job alone."""

import errno
import struct
import threading
import zlib
from base64 import b64encode
from concurrent.futures import Executor, Future
from dataclasses import replace
from io import BytesIO
from resource import RUSAGE_SELF, getrusage

import pytest
import torch
from PIL import Image
from sqlalchemy import update

from undertow import InvalidInput, UNet
from undertow.engine.metadata import read_description
from undertow.serving.failures import FailureCode, Refused
from undertow.serving.jobs import JobState, StoredFile
from undertow.serving.store.tables import jobs
from undertow.serving.worker import about, finishing
from undertow.serving.worker.worker import FORGOTTEN_S

UNLIKE = (
    {"seed": 1},
    {"seed": 2, "adapters": [{"source": "one"}]},
    {"seed": 3, "adapters": [{"source": "one", "scale": 0.5}, {"source": "two"}]},
    {"seed": 4, "adapters": [{"source": "one"}, {"source": "two"}, {"source": "three"}]},
    {"seed": 5, "adapters": [{"source": "large"}], "guidance_scale": 3.0},
)
"""Without adapters, with one and two in slots, with more than a row has slots for, and one too large for a slot."""


def test_a_job_becomes_a_picture_that_says_how_it_was_made(place):
    id = place.submit(seed=7, label="mine", count=2)
    worker = place.worker()
    (job,) = place.finish(worker, id)
    assert job.state is JobState.SUCCEEDED
    assert len(job.result.pictures) == 2
    for index, picture in enumerate(job.result.pictures):
        content = place.artifacts.read(picture.sha256)
        with Image.open(BytesIO(content)) as image:
            assert image.size == (picture.width, picture.height) == (32, 32)
        description = read_description(place.artifacts.path(picture.sha256))
        assert (picture.media_type, picture.bytes, picture.seed) == ("image/png", len(content), 7 + index)
        assert (description.request.prompt, description.index) == ("red apple", index)
    report = job.result.report
    assert (report["mode"], report["model"], report["attempt"], report["size"]) == ("reproducible", "tiny", 0, [32, 32])
    assert not place.artifacts.jobs_with_files(), "the log went with the job"
    assert [event.kind for event in place.store.events(id)][:2] == ["accepted", "started"]
    assert place.store.events(id)[-1].kind == "succeeded"


@pytest.mark.parametrize(("format_", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_a_job_has_the_format_that_it_asked_for(place, format_, name):
    (job,) = place.finish(place.worker(), place.submit(format=format_, steps=1))
    (picture,) = job.result.pictures
    assert picture.media_type == f"image/{format_}"
    with Image.open(BytesIO(place.artifacts.read(picture.sha256))) as image:
        assert image.format == name


def test_the_same_bytes_alone_among_others_and_after_a_kill(make_place):
    place = make_place()
    worker = place.worker()
    alone = [place.draw(worker, place.submit(**one, steps=4)) for one in UNLIKE]

    place = make_place()
    ids = [place.submit(**one, steps=4) for one in UNLIKE]
    assert place.draw(place.worker(), *ids) == [sha for one in alone for sha in one]
    assert 4 in [place.store.job(one).result.report["rows"] for one in ids], "some shared forwards"

    place = make_place()
    ids = [place.submit(**one, steps=4) for one in UNLIKE]
    place.run_until(place.worker("killed"), ids[1], 2)
    second = place.worker("second", lost=("killed",))
    assert place.draw(second, *ids) == [sha for one in alone for sha in one]
    found = [place.store.job(one) for one in ids]
    assert found[1].result.replayed_steps == 2, "it went on inside the picture"
    assert found[1].attempt == 0, "its worker had brought it further"


def test_progress_tells_every_stage_of_a_job(place, monkeypatch):
    monkeypatch.setattr("undertow.engine.engine.ENCODE_S", 0.0)
    id, worker, stages = place.submit(steps=2), place.worker(), []
    while not place.store.job(id).state.is_final:
        worker.run_once()
        stages += [drawing.progress().stage for drawing in worker._drawings.values()]
    assert list(dict.fromkeys(stages)) == ["encoding", "denoising", "decoding"]


def test_lost_workers_are_charged_only_where_the_job_got_no_further(make_place):
    place = make_place(attempts=2)
    id = place.submit(steps=8)
    for step in (1, 3, 5):
        place.run_until(place.worker(f"unlucky {step}"), id, step)
        place.store.expire_leases(worker=f"unlucky {step}")
    job = place.store.job(id)
    assert (job.state, job.attempt, job.alone) == (JobState.QUEUED, 0, True)
    for name in ("same place", "and again"):  # what a poison does: the replay comes as far as before, and no further
        place.run_until(place.worker(name), id, 5)
        place.store.expire_leases(worker=name)
    job = place.store.job(id)
    assert (job.state, job.attempt, job.failure.code) == (JobState.FAILED, 2, FailureCode.POISON)


def test_what_is_wrong_with_one_job_is_its_own(make_place):
    """A LoRA that gives NaN, one of another model, a picture that does not fit into the budget, an upload that was
    damaged and one that was exchanged for a bomb, among five that are well."""
    place = make_place()
    worker = place.worker()
    alone = [place.draw(worker, place.submit(seed=seed, steps=2))[0] for seed in range(5)]

    place = make_place(budget_bytes=getrusage(RUSAGE_SELF).ru_maxrss * 1024 + 2**30)
    roomy = replace(place.settings, budget_bytes=2**44)
    picture, exchanged = place.artifacts.put(png()), place.artifacts.put(png("blue"))
    for upload in (picture, exchanged):
        place.store.upload("key", stored(upload), 60.0)
    healthy = [place.submit(seed=seed, steps=2) for seed in range(3)]
    endless = place.submit(adapters=[{"source": "endless"}])
    other = place.submit(adapters=[{"source": "other"}])
    damaged = place.submit(image={"artifact": picture}, strength=0.5)
    bomb = place.submit(image={"artifact": exchanged}, strength=0.5)
    with pytest.raises(InvalidInput, match=r"a picture of 9000x9000 pixels, expected at most 16,777,216 pixels"):
        place.submit(image=b64encode(bomb_bytes()).decode())
    with pytest.raises(Refused, match="a picture of 4096x4096 needs at least"):
        place.submit(size=4096)
    large = place.submit(size=4096, settings=roomy)  # another worker of the service has room for it
    healthy += [place.submit(seed=seed, steps=2) for seed in range(3, 5)]
    place.artifacts.path(picture).write_bytes(b"something else")
    place.artifacts.path(exchanged).write_bytes(bomb_bytes())
    worker = place.worker()
    assert place.draw(worker, *healthy) == alone
    found = [job.failure for job in place.finish(worker, endless, other, damaged, bomb, large)]
    assert [one.code for one in found] == [
        FailureCode.NON_FINITE,
        FailureCode.ADAPTER_MISMATCH,
        FailureCode.UNREADABLE_FILE,
        FailureCode.UNREADABLE_FILE,
        FailureCode.OUT_OF_MEMORY,
    ]
    assert "bytes do not have the hash" in found[3].detail
    assert "a picture of 4096x4096 needs at least" in found[4].detail
    assert "picture 0" in found[0].origin or "picture 0" in found[0].detail


def test_memory_that_runs_out_alone_fails_the_job_and_may_be_tried_again(place, monkeypatch):
    worker = place.worker()
    monkeypatch.setattr(UNet, "forward", out_of_memory)
    (job,) = place.finish(worker, place.submit())
    assert (job.failure.code, job.failure.may_retry) == (FailureCode.OUT_OF_MEMORY, True)


def test_a_client_cancels_between_two_steps(place):
    id, other = place.submit(steps=10), place.submit(seed=2)
    worker = place.worker()
    place.run_until(worker, id, 3)
    reached = worker._drawings[id].progress().step
    drawing = worker._drawings[id]
    place.store.cancel(id, "key")
    worker.pulse.beat()
    worker.run_once()
    assert place.store.job(id).state is JobState.CANCELED
    assert drawing.progress().step <= reached + 1
    assert place.draw(worker, other)
    assert not place.artifacts.jobs_with_files()


def test_a_deadline_that_passes_ends_the_job(make_place, clock):
    place = make_place(clock=clock)
    id = place.submit(steps=10)
    place.store._database.write(lambda connection: set_deadline(connection, id, clock.now + 5), "test")
    worker = place.worker()
    place.run_until(worker, id, 2)
    clock.jump(6)
    worker.pulse.beat()
    (job,) = place.finish(worker, id)
    assert (job.state, job.failure.code) == (JobState.EXPIRED, FailureCode.DEADLINE_PASSED)


def test_a_worker_that_lost_its_lease_publishes_nothing_and_leaves_the_log_of_the_next_one(make_place, clock):
    place = make_place(clock=clock)
    id = place.submit()
    slow, fast = place.worker("slow"), place.worker("fast")
    place.run_until(slow, id, 2)
    clock.jump(place.settings.lease_s + 1)
    place.run_until(fast, id, 2)
    before = place.store.job(id)
    stale = slow._drawings[id].claim
    while slow._drawings:  # it does not know yet, and writes to its log
        slow.run_once()
    assert place.store.job(id).state is JobState.RUNNING
    assert (before.worker, before.fence) == ("fast", stale.fence + 1)
    place.draw(fast, id)
    job = place.store.job(id)
    assert (job.worker, job.result.replayed_steps) == ("fast", 2)


def test_a_worker_hears_that_it_lost_its_lease_and_stops_drawing(make_place, clock):
    place = make_place(clock=clock)
    id = place.submit(steps=10)
    slow, fast = place.worker("slow"), place.worker("fast")
    place.run_until(slow, id, 2)
    clock.jump(place.settings.lease_s + 1)
    place.run_until(fast, id, 2)
    slow.pulse.beat()
    slow.run_once()
    assert not slow._drawings
    assert place.store.job(id).worker == "fast"


def test_a_job_that_was_published_a_moment_ago_is_not_taken_for_another_workers(place, caplog):
    """The pulse may see that it has ended before the loop hears how."""
    worker, id = place.worker(), place.submit(steps=2)
    done = Future()

    class Committed(Executor):
        def submit(self, function, *arguments, **named):
            done.result_of = function(*arguments, **named)
            return done

    worker.finishing.publisher = Committed()
    while not place.store.job(id).state.is_final:
        worker.run_once()
    worker.pulse.beat()
    worker.run_once()
    done.set_result(done.result_of)
    worker.run_once()
    assert not worker._drawings
    assert "not this worker's" not in caplog.text
    samples = [tuple(one) for family in worker.measures.snapshot().values() for one in family["samples"]]
    assert any(name == "undertow_images_total" and value == 1 for name, _, value in samples)


def test_a_worker_that_is_stopped_gives_back_what_is_not_done(make_place):
    place = make_place(grace_s=0.0)
    id = place.submit(steps=10)
    first = place.worker("first")
    place.run_until(first, id, 5)
    first.drain(threading.Event())
    job = place.store.job(id)
    assert (job.state, job.attempt, job.alone) == (JobState.QUEUED, 0, False)
    second = place.worker("second")
    place.draw(second, id)
    assert place.store.job(id).result.replayed_steps == 5


def test_a_worker_that_is_stopped_ends_what_it_can_within_the_grace_and_begins_nothing(make_place):
    place = make_place(grace_s=60.0, jobs_at_once=1)
    running, waiting = place.submit(), place.submit(seed=2)
    worker = place.worker()
    place.run_until(worker, running, 1)
    worker.drain(threading.Event())
    assert place.store.job(running).state is JobState.SUCCEEDED
    assert place.store.job(waiting).state is JobState.QUEUED


def test_a_full_disk_keeps_the_pictures_until_there_is_room(place, monkeypatch):
    monkeypatch.setattr(finishing, "STORE_AGAIN_S", 0.0)
    worker, put, tries = place.worker(), place.artifacts.put, []

    def full_twice(content):
        tries.append(len(content))
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(content)

    id = place.submit(steps=1)
    monkeypatch.setattr(place.artifacts, "put", full_twice)
    while not tries:
        worker.run_once()
    worker.say(now=True)
    (info,) = place.store.workers.list()
    assert info.data["problem"] == "storage_full"
    assert place.draw(worker, id)
    assert len(tries) == 3


def test_a_disk_that_stays_full_fails_the_job_as_transient(place, monkeypatch):
    monkeypatch.setattr(finishing, "STORED_LATE_S", -1.0)
    worker = place.worker()
    id = place.submit(steps=1)
    monkeypatch.setattr(place.artifacts, "put", full)
    (job,) = place.finish(worker, id)
    assert (job.failure.code, job.failure.may_retry) == (FailureCode.STORAGE_FULL, True)


def test_without_room_on_the_disk_no_job_is_begun(place, monkeypatch):
    worker, id = place.worker(), place.submit(steps=1)
    monkeypatch.setattr(about, "FREE_BYTES", 2**60)
    assert not worker.run_once()
    assert place.store.job(id).state is JobState.QUEUED
    monkeypatch.undo()
    assert place.draw(worker, id)


def test_a_worker_that_starts_takes_back_what_is_known_to_be_lost_and_forgets_who_is_gone(make_place, clock):
    place = make_place(clock=clock)
    id = place.submit()
    killed = place.worker("killed")
    place.run_until(killed, id, 1)
    place.worker("long ago")
    clock.jump(2.0)
    for name in ("long ago", "second"):
        one = place.worker(name, lost=("killed",))
        one.say(now=True)
    assert place.store.job(id).state is JobState.QUEUED, "long before its lease is over"
    assert [one.name for one in place.store.workers.list()] == ["long ago", "second"]
    clock.jump(FORGOTTEN_S + 1)
    place.worker("third")
    assert [one.name for one in place.store.workers.list()] == ["third"]


def test_previews_are_made_while_somebody_watches(place, monkeypatch):
    monkeypatch.setattr("undertow.serving.worker.drawing.PREVIEW_S", 0.0)
    id = place.submit(steps=10)
    worker = place.worker()
    place.run_until(worker, id, 3)
    assert not place.artifacts.preview_path(id).exists()
    place.store.want_preview(id, place.store.clock() + 60)
    worker.pulse.beat()
    place.run_until(worker, id, 6)
    with Image.open(place.artifacts.preview_path(id)) as image:
        assert image.width > 0
    place.draw(worker, id)
    assert not place.artifacts.preview_path(id).exists()


def test_what_metrics_promise_is_counted(make_place):
    place = make_place(attempts=1)
    worker, lost = place.worker(), place.submit()
    place.store.claim("dead", lambda waiting: [lost], 30.0)
    place.store.expire_leases(worker="dead")
    drawn, canceled = place.submit(adapters=["one"], steps=4), place.submit(steps=30)
    place.store.want_preview(drawn, place.store.clock() + 60)
    place.run_until(worker, drawn, 1)
    worker.pulse.beat()
    place.draw(worker, drawn)
    assert place.draw(worker, place.submit(promised_at=place.store.clock() + 3600))
    place.store.cancel(canceled)
    worker.pulse.beat()
    worker.run_once()
    samples = [tuple(one) for family in worker.measures.snapshot().values() for one in family["samples"]]
    found = {name.removeprefix("undertow_"): value for name, _, value in samples}
    assert (found["lease_expired_total"], found["poison_total"]) == (1, 1)
    assert (found["cancel_latency_seconds_count"], 0 <= found["cancel_latency_seconds_sum"] < 60) == (1, True)
    assert found["preview_seconds_count"] >= 1
    assert (found["adapter_uses_total"], found["images_total"]) == (1, 2)
    assert (found["promises_total"], found["promise_error_seconds_count"]) == (1, 1), "nothing else was promised"
    assert 3500 < found["promise_error_seconds_sum"] < 3600
    assert 2**24 < found["memory_bytes"] < 2**37


def test_the_fast_mode_draws_too_and_learns_what_work_costs(place):
    worker = place.worker()
    before = worker.timing.of("tiny").forward[256][2].count
    assert place.draw(worker, place.submit(mode="fast"))
    assert worker.timing.of("tiny").forward[256][2].count > before
    assert worker.timing.of("tiny").decode


def test_everything_that_waits_is_told_when_it_will_be_done(place):
    worker = place.worker()
    ids = [place.submit(seed=seed, steps=10) for seed in range(3)]
    worker.run_once()
    worker.pulse.beat()
    times = [place.store.job(one).finish_at for one in ids]
    assert all(time is not None and time > place.store.clock() - 60 for time in times)


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("not enough")


def full(content):
    raise OSError(errno.ENOSPC, "No space left on device")


def png(color: str = "red") -> bytes:
    content = BytesIO()
    Image.new("RGB", (32, 32), color).save(content, format="PNG")
    return content.getvalue()


def bomb_bytes() -> bytes:
    """A small file that claims 81 million pixels."""
    content = bytearray(png())
    content[16:24] = struct.pack(">II", 9000, 9000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def stored(sha256):
    return StoredFile(sha256=sha256, media_type="image/png", bytes=len(png()))


def set_deadline(connection, id, at):
    connection.execute(update(jobs).where(jobs.c.id == id).values(deadline_at=at))
