"""Logs of outcomes as files: one for each claim, and only what is whole and fits is used again."""

import errno
import logging

import pytest
import torch

from undertow.engine.engine import Engine
from undertow.engine.options import RunOptions
from undertow.serving.request_json import request_of
from undertow.serving.worker.drawing import limits_of
from undertow.serving.worker.logs import JobLog


@pytest.fixture
def interrupted(place):
    """A place whose first worker has drawn two of three steps, and the worker."""
    id = place.submit()
    worker = place.worker("first")
    place.run_until(worker, id, 2)
    return id, worker


def logs_of(place, id):
    log = place.artifacts.log_path(id)
    return sorted(log.parent.glob(f"{log.name}.*"))


def taken(place, id, name="second"):
    place.store.expire_leases(worker="first")
    worker = place.worker(name)
    place.draw(worker, id)
    return place.store.job(id).result


def test_a_torn_tail_is_cut(place, interrupted):
    id, _ = interrupted
    (log,) = logs_of(place, id)
    log.write_bytes(log.read_bytes()[:-7])
    assert taken(place, id).replayed_steps == 1


def test_a_log_of_other_circumstances_is_not_used_and_the_report_says_so(place, interrupted, monkeypatch):
    id, _ = interrupted
    monkeypatch.setattr("undertow.engine.fingerprint._own_version", lambda: "0.0.0")
    result = taken(place, id)
    assert result.replayed_steps == 0
    assert "starts over" in result.report["note"]
    assert "undertow was" in result.report["note"]


def test_a_job_without_an_earlier_log_is_identified_once(place, monkeypatch):
    made, own = [], Engine.fingerprint
    monkeypatch.setattr(Engine, "fingerprint", lambda *given, **more: made.append(given) or own(*given, **more))
    id, worker = place.submit(), place.worker("first")
    place.run_until(worker, id, 2)
    assert len(made) == 1
    assert taken(place, id).replayed_steps == 2, "whose log is of use nevertheless"


def test_nor_is_one_of_another_number_of_threads(place, interrupted):
    """With which products are added up in another order."""
    id, _ = interrupted
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        result = taken(place, id)
    finally:
        torch.set_num_threads(before)
    assert result.replayed_steps == 0
    assert "starts over" in result.report["note"]
    assert f"{before + 1} threads" in result.report["note"]


def test_what_is_no_log_is_not_used(place, interrupted):
    id, _ = interrupted
    (log,) = logs_of(place, id)
    log.write_bytes(b"something else that lies here")
    assert taken(place, id).replayed_steps == 0


def test_each_claim_writes_into_a_file_of_its_own(place, interrupted):
    id, first = interrupted
    place.store.expire_leases(worker="first")
    second = place.worker("second")
    place.run_until(second, id, 2)
    (log,) = logs_of(place, id)
    assert log.suffix == f".{second._drawings[id].claim.fence}", "the older one is gone"
    before = log.read_bytes()
    first.models.step()  # it does not know that it is late
    assert log.read_bytes() == before
    first._drawings[id].log.forget()
    assert log.exists()


def test_a_full_disk_ends_the_log_and_not_the_job(place, caplog):
    id = place.submit()
    worker = place.worker()
    place.run_until(worker, id, 1)
    log = worker._drawings[id].log

    class Full:
        def write(self, record):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    log._file.close()
    log._file = Full()
    with caplog.at_level(logging.WARNING):
        assert place.draw(worker, id)
    assert "the log of job" in caplog.text


def test_a_claim_of_a_released_job_goes_on_from_the_newest_log(place, interrupted):
    id, first = interrupted
    drawing = first._drawings[id]
    drawing.stop()
    first._let_go(drawing)
    place.store.release(drawing.claim)
    (claim,) = place.store.claim("second", lambda waiting: [one.id for one in waiting], 10.0)
    log = JobLog(place.artifacts, claim)
    request = request_of(claim.job.spec, place.artifacts, place.catalog)
    engine = place.worker("second").models.take("tiny").engine
    outcomes = log.outcomes(engine, request, RunOptions(limits=limits_of(claim, None)))
    log.close()
    assert outcomes.rows == 4, "two steps of two rows"
