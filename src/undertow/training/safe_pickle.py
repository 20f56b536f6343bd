"""Reads the few things a data pickle may hold: numbers, text, bytes, lists, dicts and arrays of bytes.

A pickle is a program: `pickle.load` runs whatever callable the file names. Here a file can reach only the classes of
this module, which store what they are given and do nothing; numpy's own constructors are never called.
"""

import io
import pickle
from typing import Any, NoReturn

import numpy as np


class RefusedPickle(Exception):
    """The pickle names something that plain data does not need, or is damaged."""


class _Dtype:
    """Stands for numpy.dtype; only unsigned bytes are accepted."""

    def __init__(self, name: str | bytes, *_flags: bool):
        code = name.decode("latin1") if isinstance(name, bytes) else name
        if code not in ("u1", "|u1", "uint8"):
            raise RefusedPickle(f"an array of type {code!r}; only bytes (uint8) are expected")

    def __setstate__(self, _state: tuple[Any, ...]) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Array:
    """Stands for numpy.ndarray, and for the functions that make one empty: keeps shape and raw bytes."""

    shape: tuple[int, ...]
    raw: bytes

    def __init__(self, *_arguments: object):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or fortran_order:
            raise RefusedPickle("an array that is not plain bytes in C order")
        self.shape, self.raw = tuple(shape), raw

    def to_numpy(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            return np.frombuffer(self.raw, dtype=np.uint8).reshape(self.shape)
        except (AttributeError, TypeError, ValueError) as err:
            raise RefusedPickle("an array whose bytes do not fit its shape") from err


class _ArrayFromBuffer(_Array):
    """Stands for the function by which numpy reads arrays of pickle protocol 5."""

    def __init__(self, raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str):
        super().__init__()
        self.__setstate__((1, shape, dtype, order != "C", bytes(raw)))


class _Encoded(bytes):
    """Stands for `codecs.encode`, and `bytes` for none, by which Python 3 writes bytes in old protocols."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> "_Encoded":
        if encoding != "latin1":
            raise RefusedPickle(f"text encoded as {encoding!r}")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, _state: object) -> None:
        raise RefusedPickle("bytes with attributes")


# Classes only, each with its own `__setstate__`: a pickle may set attributes on anything that has none, functions too.
ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _ArrayFromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _ArrayFromBuffer,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,
}
"""What a pickle may name, and the inert thing it gets instead."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in ADMITTED:
            raise RefusedPickle(f"it wants to call {module}.{name}, which plain data never needs")
        return ADMITTED[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        raise RefusedPickle(f"it refers to an object outside the file ({pid!r})")


def load_inert(content: bytes) -> Any:
    """What the pickle holds, with its arrays as numpy arrays; text written by Python 2 comes as bytes.

    Errors: `RefusedPickle` for anything else than plain data; nothing of the file has been executed then.
    """
    try:
        return _with_arrays(_Reader(io.BytesIO(content), encoding="bytes").load())
    except RefusedPickle:
        raise
    except Exception as err:  # a damaged pickle fails in any way that bytes can be misread
        raise RefusedPickle(f"it is damaged or not a pickle ({type(err).__name__}: {err})") from err


def _with_arrays(value: Any) -> Any:
    """The arrays of a value, and of the entries of a dict: where data sets have them. Deeper ones stay as they are: a
    pickle of a few bytes can hold lists that hold each other without end."""
    if isinstance(value, dict):
        return {key: item.to_numpy() if isinstance(item, _Array) else item for key, item in value.items()}
    return value.to_numpy() if isinstance(value, _Array) else value
