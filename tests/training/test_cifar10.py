import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from undertow.errors import DataError
from undertow.training.cifar10 import CLASS_NAMES, load_cifar10
from undertow.training.data import Cifar10

ROWS = 6
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(number):
    """(pixels [rows, 3072], labels) of one small batch, another for each number."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (ROWS, 3072), dtype=np.uint8), [(number + row) % 10 for row in range(ROWS)]


def as_python(number):
    rows, labels = batch(number)
    # Keys as the original has them, Python 2's str.
    return pickle.dumps({b"data": rows, b"labels": labels, b"batch_label": b"", b"filenames": []}, protocol=2)


def as_binary(number):
    rows, labels = batch(number)
    return np.concatenate([np.array(labels, dtype=np.uint8)[:, None], rows], axis=1).tobytes()


FORMATS = {"python": ("cifar-10-batches-py", "", as_python), "binary": ("cifar-10-batches-bin", ".bin", as_binary)}


@pytest.fixture(params=FORMATS)
def unpacked(request, tmp_path):
    """The folder that holds the batches, within tmp_path."""
    name, ending, write = FORMATS[request.param]
    folder = tmp_path / name
    folder.mkdir()
    for number, batch_name in enumerate(NAMES):
        (folder / f"{batch_name}{ending}").write_bytes(write(number))
    return folder


def packed(folder):
    archive = (
        folder.parent
        / {"cifar-10-batches-py": "cifar-10-python", "cifar-10-batches-bin": "cifar-10-binary"}[folder.name]
    )
    path = shutil.make_archive(str(archive), "gztar", folder.parent, folder.name)
    shutil.rmtree(folder)
    return path


def assert_right(pictures):
    rows, labels = batch(2)
    assert len(pictures) == 5 * ROWS
    assert pictures.labels[2 * ROWS : 3 * ROWS].tolist() == labels
    # A row is red, green, blue, each 32 lines of 32.
    assert pictures.pixels[2 * ROWS, 1, 3, 4].item() == rows[0, 1024 + 3 * 32 + 4]


def test_batches_are_read_from_their_folder_and_from_the_one_above(unpacked):
    assert_right(Cifar10(folder=str(unpacked)).open())
    assert_right(Cifar10(folder=str(unpacked.parent)).open())


def test_batches_are_read_from_the_archive_and_from_its_folder(unpacked, tmp_path):
    path = packed(unpacked)
    assert_right(Cifar10(folder=path).open())
    assert_right(Cifar10(folder=str(tmp_path)).open())


def test_the_test_split_is_the_test_batch(unpacked):
    assert Cifar10(folder=str(unpacked)).open("test").labels.tolist() == batch(5)[1]


def test_classes_are_in_their_true_order():
    # Trap T12: labels 0, 5, 3, 9 are these, not "cat, dog, bird, truck".
    assert [CLASS_NAMES[label] for label in (0, 5, 3, 9)] == ["airplane", "dog", "cat", "truck"]


def test_a_malicious_batch_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    for name in NAMES[:5]:
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Attack(), b"labels": [0]}, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_1 is not a CIFAR-10 batch: it wants to call (posix|nt)\.mkdir"):
        load_cifar10(tmp_path)
    assert not trace.exists()


def test_links_in_an_archive_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(as_binary(0))
    path = tmp_path / "cifar.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(DataError, match="no CIFAR-10 found"):
        load_cifar10(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (as_binary(1)[:-1], "it was truncated"),
        (bytes([10]) + as_binary(1)[1:], "labels above 9"),
        (as_python(1)[:-100], "damaged"),
        (pickle.dumps([1, 2]), "holds a list, not a dict"),
        (pickle.dumps({b"data": batch(1)[0], b"fine_labels": []}), "labels"),
        (pickle.dumps({b"data": batch(1)[0][:, :100], b"labels": [0] * ROWS}), r"\[rows, 3072\]"),
        (pickle.dumps({b"data": batch(1)[0], b"labels": [0]}), "one whole number per row"),
        (pickle.dumps({b"data": batch(1)[0], b"labels": [-1] * ROWS}), "one whole number per row"),
    ],
    ids=["empty", "truncated", "label 10", "cut pickle", "list", "CIFAR-100", "narrow", "one label", "negative"],
)
def test_damaged_and_foreign_batches_are_refused(tmp_path, content, problem):
    for number, name in enumerate(NAMES[:5]):
        (tmp_path / name).write_bytes(as_binary(number))
    (tmp_path / "data_batch_4").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_4.*{problem}"):
        load_cifar10(tmp_path)


def test_missing_batches_folders_and_archives_are_named(unpacked, tmp_path):
    next(unpacked.glob("data_batch_3*")).unlink()
    with pytest.raises(DataError, match="without data_batch_3"):
        load_cifar10(unpacked)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no CIFAR-10 found.*unpack"):
        load_cifar10(empty)
    with pytest.raises(DataError, match="no such file or folder"):
        load_cifar10(tmp_path / "nowhere")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08 not a tar")
    with pytest.raises(DataError, match="not a readable tar"):
        load_cifar10(tmp_path / "cut.tar.gz")


def test_a_truncated_archive_is_refused(unpacked):
    archive = Path(packed(unpacked))
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match="not a readable tar"):
        load_cifar10(archive)


def test_pixels_are_bytes_in_memory(unpacked):
    assert load_cifar10(unpacked).pixels.dtype == torch.uint8
