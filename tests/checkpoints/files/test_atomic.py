"""Writing: whole or not at all, nothing followed, nothing of others replaced, permissions by the umask."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from undertow.checkpoints.files.atomic import atomic_folder, atomic_write, write_text
from undertow.checkpoints.files.weights import write_tensors

KILLED = """
import os
from pathlib import Path
from undertow.checkpoints.files.atomic import atomic_write

with atomic_write(Path({path!r})) as draft:
    draft.write_bytes(b"half")
    os._exit(1)
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_permissions_are_those_of_any_new_file(tmp_path):
    """Under the umask 027 the group may read and others may not, whatever the folder's own permissions are."""
    tmp_path.chmod(0o777)
    write_text("text", tmp_path / "text")
    write_tensors({"a": torch.ones(1)}, tmp_path / "tensors", {})
    with atomic_write(tmp_path / "picture.png") as draft:
        Image.new("L", (1, 1)).save(draft)  # in the format of the destination's ending
    with atomic_folder(tmp_path / "folder") as draft:
        write_text("text", draft / "inside")
    assert {path.name: mode(path) for path in tmp_path.rglob("*")} == {
        **dict.fromkeys(("text", "tensors", "picture.png", "inside"), "-rw-r-----"),
        "folder": "drwxr-x---",
    }


def test_nothing_of_others_is_followed_or_replaced(tmp_path):
    """Neither a file with the name that drafts once had, nor what a link at the destination points to."""
    (tmp_path / "model.part").write_text("a user's file")
    (tmp_path / "elsewhere").write_text("another's file")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    write_text("new", tmp_path / "model")
    contents = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert contents == {"model.part": "a user's file", "elsewhere": "another's file", "model": "new"}
    assert not (tmp_path / "model").is_symlink()


def test_drafts_of_killed_processes_are_removed_and_those_that_grow_are_not(tmp_path):
    killed = KILLED.format(path=str(tmp_path / "killed"))
    subprocess.run([sys.executable, "-c", killed], check=False)
    assert [path.name.endswith(".part") for path in tmp_path.iterdir()] == [True]
    with atomic_write(tmp_path / "first") as draft:
        draft.write_text("one")
        write_text("two", tmp_path / "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "one", "second": "two"}


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_text("old", tmp_path / "file")
    (tmp_path / "folder").mkdir()
    write_text("old", tmp_path / "folder" / "inside")
    for write in (atomic_write, atomic_folder):
        with pytest.raises(KeyboardInterrupt), write(tmp_path / ("file" if write is atomic_write else "folder")):
            raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inside").read_text() == "old"


def test_a_folder_takes_the_place_of_another(tmp_path):
    (tmp_path / "folder").mkdir()
    write_text("old", tmp_path / "folder" / "old")
    with atomic_folder(tmp_path / "folder") as draft:
        write_text("new", draft / "new")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["folder", "folder/new"]
