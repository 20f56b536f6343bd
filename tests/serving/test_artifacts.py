"""The folder of artifacts, alone and with the store's garbage collection."""

import errno
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from tests.serving.jobs_for_tests import a_job, a_result, everything
from undertow.serving.artifacts import ArtifactDamaged, ArtifactFolder
from undertow.serving.jobs import StoredFile
from undertow.serving.store.records import ArtifactNotFound, JobNotFound


@pytest.fixture
def folder(tmp_path):
    return ArtifactFolder(tmp_path)


def files(root: Path) -> list[Path]:
    return [one for one in (root / "artifacts").rglob("*") if one.is_file()]


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 7200, time.time() - 7200))


def test_bytes_are_found_by_their_hash_and_written_once(folder, tmp_path):
    name = folder.put(b"abc")
    assert name == sha256(b"abc").hexdigest()
    assert folder.read(name) == b"abc"
    number = folder.path(name).stat().st_ino
    assert folder.put(b"abc") == name
    assert folder.path(name).stat().st_ino == number
    assert files(tmp_path) == [folder.path(name)]


def test_changed_bytes_are_not_given(folder):
    name = folder.put(b"abc")
    folder.path(name).write_bytes(b"abd")
    with pytest.raises(ArtifactDamaged, match="submit the job again"):
        folder.read(name)


@pytest.mark.parametrize("name", ["", "..", "/etc/passwd", "A" * 64, "a" * 63 + "/", "a" * 64 + "\n"])
def test_what_is_no_hash_is_no_file(folder, name):
    with pytest.raises(FileNotFoundError):
        folder.read(name)
    with pytest.raises(ValueError, match="is no id of a job"):
        folder.log_path(name + "/x")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_leaves_nothing_half_written(folder, tmp_path, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"undertow.serving.artifacts.os.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        folder.put(b"abc")
    monkeypatch.undo()
    assert files(tmp_path) == []
    assert folder.read(folder.put(b"abc")) == b"abc"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_put_returns(folder, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: calls.append(name) or real(*given))
    folder.put(b"abc")
    assert calls == ["fsync", "replace", "fsync", "fsync"]


def test_sweeping_spares_the_young_the_kept_and_the_touched(folder, tmp_path):
    kept, young, touched, old = (folder.put(one) for one in (b"kept", b"young", b"touched", b"old"))
    draft = folder.path(old).with_name("x.draft")
    draft.write_bytes(b"of a process that died")
    for path in (folder.path(kept), folder.path(touched), folder.path(old), draft):
        make_old(path)
    assert folder.touch(touched)
    assert folder.put(b"touched") == touched
    assert folder.sweep({kept}, 3600.0) == (2, len(b"old") + len(b"of a process that died"))
    assert {one.name for one in files(tmp_path)} == {kept, young, touched}
    assert not folder.touch(old)


def test_a_preview_is_replaced_whole(folder):
    for content in (b"1", b"22"):
        folder.put_preview("job_1", content)
        assert folder.preview_path("job_1").read_bytes() == content
    assert folder.jobs_with_files() == {"job_1"}


def test_what_nobody_needs_is_removed_and_the_rest_stays(any_store, clock, folder, tmp_path):
    drawn, brought, input_ = (folder.put(one) for one in (b"drawn", b"brought", b"input"))
    folder.put(b"orphan")
    given = StoredFile(sha256=input_, media_type="image/png", bytes=5)
    any_store.upload("A", StoredFile(sha256=brought, media_type="image/png", bytes=7), keep_s=3600.0)
    done = any_store.submit(a_job()).job.id
    (claim,) = any_store.claim("w1", everything, 30.0)
    any_store.publish(claim, a_result(drawn))
    runs = any_store.submit(a_job("pear", inputs=(given,))).job.id
    any_store.claim("w1", everything, 10.0**9)
    for job in (done, runs, "job_removed"):
        folder.log_path(job).write_bytes(b"log")
    folder.put_preview(done, b"preview")
    for path in files(tmp_path):
        make_old(path)
    garbage = any_store.collect_garbage(folder)
    assert (garbage.jobs, garbage.files, garbage.bytes, garbage.logs) == (0, 1, len(b"orphan"), 3)
    assert {one.name for one in files(tmp_path)} == {drawn, brought, input_}
    assert folder.jobs_with_files() == {runs}
    clock.jump(8 * 24 * 3600)
    assert any_store.collect_garbage(folder).jobs == 1
    assert {one.name for one in files(tmp_path)} == {input_}  # of the job that still runs
    with pytest.raises(JobNotFound):
        any_store.job(done)
    with pytest.raises(ArtifactNotFound):
        any_store.artifact(drawn)
    assert any_store.events(done) == []
