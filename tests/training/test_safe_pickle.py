import collections
import os
import pickle
import pickletools

import numpy as np
import pytest

from undertow.training import safe_pickle
from undertow.training.safe_pickle import RefusedPickle, load_inert


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(protocol):
    data = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2], "names": [b"a", "b", b""]}
    read = load_inert(pickle.dumps(data, protocol=protocol))
    np.testing.assert_array_equal(read["data"], data["data"])
    assert read["labels"] == [1, 2]
    assert read["names"] == [b"a", "b", b""]


def test_text_of_python_2_is_bytes():
    # {'labels': [3]} as Python 2 writes it, protocol 2.
    assert load_inert(b"\x80\x02}U\x06labels]K\x03as.") == {b"labels": [3]}


class Runs:
    """What an attacker sends: a pickle that calls any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, exec, getattr, __import__])
def test_a_pickle_that_calls_something_is_refused_and_nothing_runs(tmp_path, function):
    trace = tmp_path / "ran"
    content = pickle.dumps({"data": Runs(function, str(trace))}, protocol=2)
    with pytest.raises(RefusedPickle, match="wants to call"):
        load_inert(content)
    assert not trace.exists()


def test_numpy_s_own_loader_is_not_reachable(tmp_path):
    np.save(tmp_path / "object.npy", np.array([1], dtype=object), allow_pickle=True)
    with pytest.raises(RefusedPickle, match="wants to call numpy"):
        load_inert(pickle.dumps(Runs(np.load, str(tmp_path / "object.npy")), protocol=2))


def test_what_stands_for_numpy_cannot_be_changed_by_a_pickle():
    # GLOBAL numpy dtype, then BUILD with a state that would set class attributes.
    for name in ("dtype", "ndarray"):
        content = b"\x80\x02cnumpy\n" + name.encode() + b"\n}U\x05ownedK\x01sb."
        assert "BUILD" in {opcode.name for opcode, _, _ in pickletools.genops(content)}
        with pytest.raises(RefusedPickle):
            load_inert(content)
    encode = b"\x80\x02c_codecs\nencode\nN}U\x05ownedK\x01s\x86b."
    with pytest.raises(RefusedPickle):
        load_inert(encode)
    assert not any(hasattr(stand_in, "owned") for stand_in in safe_pickle.ADMITTED.values())


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3, dtype=np.float32),
        np.array(["a", None], dtype=object),
        np.asfortranarray(np.zeros((2, 3), dtype=np.uint8)),
        collections.OrderedDict(a=1),
    ],
    ids=["floats", "objects", "fortran", "other class"],
)
def test_arrays_of_anything_but_bytes_are_refused(value):
    with pytest.raises(RefusedPickle):
        load_inert(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x02}U\x06lab", b"hello", b"\x80\x02K\x01"])
def test_damaged_pickles_are_refused(content):
    with pytest.raises(RefusedPickle):
        load_inert(content)


def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused():
    whole = pickle.dumps(np.zeros((2, 3), dtype=np.uint8), protocol=3)
    assert b"K\x02K\x03\x86" in whole
    with pytest.raises(RefusedPickle, match="do not fit"):
        load_inert(whole.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"))
