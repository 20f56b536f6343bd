import json
import shutil

import pytest
import torch

from undertow.errors import CorruptFile, UnknownCheckpoint
from undertow.training.training_state import SavedState, load_state, save_state, saved_steps


def state(step):
    tensors = {"network": {"w": torch.full((3,), float(step))}, "average": {"w": torch.zeros(3)}, "optimizer": {}}
    return SavedState(step=step, seconds=1.5, config={"seed": 0}, tensors=tensors)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 10, 20 and 30."""
    for step in (10, 20, 30):
        save_state(tmp_path, state(step), keep=3)
    return tmp_path


def test_what_is_saved_is_loaded(folder):
    loaded = load_state(folder)
    assert (loaded.step, loaded.seconds, loaded.config) == (30, 1.5, {"seed": 0})
    assert loaded.tensors["network"]["w"].tolist() == [30, 30, 30]
    assert load_state(folder, 10).step == 10


def test_the_newest_are_kept_and_nothing_else_is_left(folder):
    save_state(folder, state(40), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000030", "step-000040"]


def test_what_was_just_written_is_kept_below_newer_ones(folder):
    """A run that was resumed from step 10 writes step 15 below the old steps 20 and 30."""
    save_state(folder, state(15), keep=2)
    assert saved_steps(folder) == [15, 30]
    save_state(folder, state(16), keep=1)
    assert saved_steps(folder) == [16]


def test_a_write_that_fails_half_way_leaves_what_was_there(folder, monkeypatch):
    def half(_tensors, file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    for step in (30, 40):
        with pytest.raises(OSError, match="no space"):
            save_state(folder, state(step), keep=1)
    monkeypatch.undo()
    assert saved_steps(folder) == [10, 20, 30]
    assert load_state(folder).tensors["network"]["w"].tolist() == [30, 30, 30]
    save_state(folder, state(40), keep=4)  # the remains are not in the way
    assert load_state(folder).step == 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "changed", "gone"],
)
def test_a_damaged_checkpoint_is_refused_and_the_newest_whole_one_named(folder, damage):
    damage(folder / "step-000030" / "state.pt")
    damage(folder / "step-000020" / "state.pt")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CorruptFile, match="step 10 is whole: resume from it with --resume-step 10"):
        load_state(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert load_state(folder, 10).step == 10


def test_when_all_are_damaged_the_message_says_so(folder):
    for state_file in folder.glob("*/state.pt"):
        state_file.write_bytes(b"")
    with pytest.raises(CorruptFile, match="no other checkpoint is whole"):
        load_state(folder)


def test_a_damaged_checkpoint_is_replaced_by_a_resumed_run(folder):
    (folder / "step-000030" / "state.pt").write_bytes(b"")
    save_state(folder, state(30), keep=3)
    assert load_state(folder).step == 30
    assert sorted(path.name for path in folder.iterdir()) == ["step-000010", "step-000020", "step-000030"]


def test_foreign_checkpoints_are_refused(folder):
    meta = folder / "step-000030" / "meta.json"
    fields = json.loads(meta.read_text())
    for content in (fields | {"format": "another"}, {}, fields | {"config": None}):
        meta.write_text(json.dumps(content))
        with pytest.raises(UnknownCheckpoint, match="its format is"):
            load_state(folder)
    meta.write_text("{")
    with pytest.raises(CorruptFile, match="not JSON"):
        load_state(folder)
    meta.unlink()
    with pytest.raises(UnknownCheckpoint, match="no such file"):
        load_state(folder)


@pytest.mark.parametrize("content", [{"model": {}}, [1], {"network": {}, "average": {}}])
def test_a_foreign_state_with_a_right_hash_is_refused(folder, content):
    foreign = state(40)
    object.__setattr__(foreign, "tensors", content)
    save_state(folder, foreign, keep=9)
    with pytest.raises(UnknownCheckpoint, match="something else than weights"):
        load_state(folder)


def test_an_absent_checkpoint_is_an_error_that_lists_the_others(folder, tmp_path):
    with pytest.raises(UnknownCheckpoint, match="no checkpoint of step 15; there are steps 10, 20, 30"):
        load_state(folder, 15)
    shutil.rmtree(folder)
    with pytest.raises(UnknownCheckpoint, match="start the run without --resume"):
        load_state(tmp_path)
