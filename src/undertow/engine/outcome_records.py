"""A log of outcomes as bytes: records behind one another, each with its length and checksum.

    log      = MAGIC record record ...          the first record is the fingerprint
    record   = length (4) checksum (4) payload  little-endian; the checksum (CRC-32) is of length and payload
    payload  = kind (1) ...

What was being written when a process died is cut off: reading ends before the first record that is not whole. Nothing
in a record is trusted: sizes that do not fit its length end the log there as well.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from undertow.engine.fingerprint import Fingerprint
from undertow.errors import InvalidInput
from undertow.memory.ladder import Economy, StepDown
from undertow.shapes import AnyTensor

MAGIC = b"undertow outcomes 1\n"

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""By their number in a log."""

_FRAME = struct.Struct("<II")
_PLACE = struct.Struct("<BIII")
_TENSOR = struct.Struct("<HBBB")


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The first record."""

    fingerprint: Fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """A row's outcome. position: of the row among all of its picture, over all passes. unit: how many units of the
    request's work were done before. question: checksum of what the network was asked."""

    picture: int
    position: int
    unit: int
    question: int
    finite: bool
    prediction: AnyTensor
    observations: Mapping[str, AnyTensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True, eq=False)
class Enlarged:
    """What the pass behind pass `position` starts from."""

    picture: int
    position: int
    unit: int
    latents: AnyTensor


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture was finished."""

    picture: int
    unit: int
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class GaveWay:
    """From here on the request was drawn with less memory."""

    step: StepDown


Record = Begun | Answered | Enlarged | Decoded | GaveWay


def framed(record: Record) -> bytes:
    """The bytes of a record."""
    payload = _payload(record)
    length = len(payload).to_bytes(4, "little")
    return length + zlib.crc32(payload, zlib.crc32(length)).to_bytes(4, "little") + payload


def records(data: bytes) -> Iterator[tuple[Record, int]]:
    """The whole records of a log, each with the number of bytes up to its end. Errors: `InvalidInput` for what is no
    log, or one of another format."""
    known = data[: len(MAGIC)]
    if not MAGIC.startswith(known):
        raise InvalidInput("outcomes", f"bytes that begin with {known[:12]!r}", f"a log that begins with {MAGIC!r}")
    view, place = memoryview(data), len(MAGIC)
    while place + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, place)
        payload = view[place + _FRAME.size : place + _FRAME.size + length]
        if len(payload) < length or zlib.crc32(payload, zlib.crc32(view[place : place + 4])) != checksum:
            return
        try:
            record = _read(payload)
        except (ValueError, TypeError, AttributeError, LookupError, struct.error, RecursionError):
            return
        place += _FRAME.size + length
        yield record, place


def _payload(record: Record) -> bytes:
    match record:
        case Begun(fingerprint=fingerprint):
            return b"\0" + json.dumps(dict(fingerprint.parts)).encode()
        case Answered():
            head = _PLACE.pack(1, record.picture, record.position, record.unit)
            head += struct.pack("<IBB", record.question, record.finite, len(record.observations))
            parts = [_tensor("", record.prediction), *(_tensor(name, one) for name, one in record.observations.items())]
            return b"".join((head, *parts))
        case Enlarged():
            return _PLACE.pack(2, record.picture, record.position, record.unit) + _tensor("", record.latents)
        case Decoded():
            return _PLACE.pack(3, record.picture, record.position, record.unit)
        case GaveWay(step=step):
            return b"\4" + json.dumps(asdict(step)).encode()


def _read(payload: memoryview) -> Record:
    """Errors: what Python raises for bytes that are no record."""
    kind = payload[0]
    if kind == 0:
        parts = json.loads(bytes(payload[1:]))
        return Begun(fingerprint=Fingerprint(parts={str(name): str(value) for name, value in parts.items()}))
    if kind == 4:
        step = json.loads(bytes(payload[1:]))
        economy = Economy(**step["economy"])
        return GaveWay(step=StepDown(unit=int(step["unit"]), reason=str(step["reason"]), economy=economy))
    _, picture, position, unit = _PLACE.unpack_from(payload)
    where: dict[str, Any] = {"picture": picture, "position": position, "unit": unit}
    rest = payload[_PLACE.size :]
    if kind == 1:
        question, finite, count = struct.unpack_from("<IBB", rest)
        tensors = dict(_tensors(rest[6:], 1 + count))
        prediction = tensors.pop("")
        return Answered(**where, question=question, finite=bool(finite), prediction=prediction, observations=tensors)
    if kind == 2:
        return Enlarged(**where, latents=dict(_tensors(rest, 1))[""])
    if kind == 3 and not rest:
        return Decoded(**where)
    raise ValueError(f"kind {kind}")


def _tensor(name: str, tensor: AnyTensor) -> bytes:
    """A tensor with the order that its memory is in, by which sums over it are rounded."""
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    label = name.encode()
    head = _TENSOR.pack(len(label), DTYPES.index(tensor.dtype), last, tensor.ndim)
    head += struct.pack(f"<{tensor.ndim}I", *tensor.shape)
    return head + label + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _tensors(data: memoryview, count: int) -> Iterator[tuple[str, AnyTensor]]:
    place = 0
    for _ in range(count):
        label, dtype, last, ndim = _TENSOR.unpack_from(data, place)
        place += _TENSOR.size
        shape = struct.unpack_from(f"<{ndim}I", data, place)
        place += 4 * ndim
        name = bytes(data[place : place + label]).decode()
        place += label
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if not 0 < size <= len(data) - place or (last and ndim != 4):
            raise ValueError(f"a tensor {shape}")
        flat = torch.frombuffer(bytearray(data[place : place + size]), dtype=DTYPES[dtype])
        tensor = flat.reshape(shape)
        yield name, tensor.contiguous(memory_format=torch.channels_last) if last else tensor
        place += size
    if place != len(data):
        raise ValueError("more than its tensors")
