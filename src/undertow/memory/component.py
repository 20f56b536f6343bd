"""A network whose weights can leave memory and come back with the same bits."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import xor
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from undertow.checkpoints.read.home import is_stand_in, stand_in
from undertow.free_memory import free_bytes
from undertow.shapes import AnyTensor

HASHED_AT_ONCE = 2**17
"""Numbers, about."""

READ_ONCE, READ_FOR_A_PICTURE, READ_AT_EVERY_STEP = range(3)
"""Priorities: what is used once a request leaves first, what is used at every step last."""

HEADROOM_BYTES = 256 * 2**20
"""Memory that is left to other programs, however large the budget."""


@runtime_checkable
class Home(Protocol):
    """Where weights are while they are not in use."""

    @property
    def is_there(self) -> bool:
        """Whether they can be read from there."""
        ...

    def keep(self, name: str, tensor: AnyTensor) -> bool:
        """Takes what is about to leave; returns whether it did. A file does not."""
        ...

    def read(self, names: Collection[str], *, mapped: bool = False) -> Mapping[str, AnyTensor]:
        """These weights, where the network computes. mapped: to be looked at only, without memory if possible."""
        ...


class HostHome:
    """Copies in the memory of the host, for networks of an accelerator: pinned, so that they come back at the speed of
    the bus. file: where weights are that never left yet."""

    is_there = True

    def __init__(self, device: torch.device, file: Home):
        self._device, self._file = device, file
        self._copies: dict[str, AnyTensor] = {}

    @classmethod
    def beside(cls, device: torch.device, file: Home, weights: Iterable[AnyTensor]) -> Home:
        """On an accelerator copies in the host's memory, where that has room for all of these weights; else the file
        alone."""
        if device.type == "cpu":
            return file
        room, size = free_bytes(torch.device("cpu")), sum(one.nbytes for one in weights)
        return cls(device, file) if room is None or size + HEADROOM_BYTES <= room else file

    def keep(self, name: str, tensor: AnyTensor) -> bool:
        copy = tensor.detach().to("cpu", copy=True)
        self._copies[name] = copy.pin_memory() if self._device.type == "cuda" else copy
        return True

    def read(self, names: Collection[str], *, mapped: bool = False) -> Mapping[str, AnyTensor]:
        kept = [name for name in names if name in self._copies]
        found = {name: self._copies[name].to(self._device, copy=True, non_blocking=True) for name in kept}
        return (
            found
            if len(kept) == len(names)
            else {**found, **self._file.read([*(set(names) - set(kept))], mapped=mapped)}
        )


@dataclass(kw_only=True, eq=False)
class Part:
    """Parameters that are read together. home: where they can be read again. stored: their sums in there, found when
    they are first compared. The first parameter has more than one number."""

    parameters: Mapping[str, nn.Parameter]
    home: Home
    stored: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def absent(self) -> set[str]:
        """Those that are not in memory, whoever let them go: several engines may draw with one model, in turns."""
        return {name for name, one in self.parameters.items() if is_stand_in(one)}

    @property
    def is_present(self) -> bool:
        """Whether all are in memory, by one of them: they come and go together, but for a stream of layers."""
        return not any(map(is_stand_in, islice(self.parameters.values(), 1)))

    def size_bytes(self, names: Collection[str]) -> int:
        return sum(_size(self.parameters[name]) for name in names)

    def as_read(self) -> None:
        """Takes the weights for those of their home, from which they were just read."""
        self._seen = {name: _stamp(parameter) for name, parameter in self.parameters.items()}

    def is_kept(self) -> bool:
        """Makes sure that what would be read is what is in memory, bit for bit; returns whether it is. What was changed
        since it was read from a file must not be lost."""
        if not self.home.is_there:
            return False
        absent = self.absent
        present = [name for name in self.parameters if name not in absent]
        moved = [name for name in present if self._seen.get(name) != _stamp(self.parameters[name])]
        moved = [name for name in moved if not self._keep(name)]
        if not moved:
            return True
        for name in moved:
            if name not in self.stored:  # one at a time, for there may be no room for all of them twice
                self.stored |= {read: _sum(tensor) for read, tensor in self._read([name], mapped=True)}
        if any(self.stored.get(name) != _sum(self.parameters[name]) for name in moved):
            return False
        self._seen |= {name: _stamp(self.parameters[name]) for name in moved}
        return True

    def _keep(self, name: str) -> bool:
        kept = self.home.keep(name, self.parameters[name])
        if kept:
            self._seen[name] = _stamp(self.parameters[name])
        return kept

    def drop(self, names: Collection[str]) -> None:
        """Leaves stand-ins."""
        for name in names:
            self.parameters[name].data = stand_in(self.parameters[name])

    def bring_in(self, names: Collection[str]) -> None:
        """Reads absent weights again: all of these, or none."""
        absent = self.absent.intersection(names)
        try:
            self._fill(absent)
        except BaseException:
            self.drop(absent)
            raise

    def _fill(self, names: Collection[str]) -> None:
        for name, tensor in self._read(sorted(names)):
            parameter = self.parameters[name]
            parameter.data = tensor if tensor.shape == parameter.shape else tensor.reshape(parameter.shape)
            self._seen[name] = _stamp(parameter)

    def _read(self, names: Sequence[str], *, mapped: bool = False) -> Iterator[tuple[str, AnyTensor]]:
        if names:
            for name, tensor in self.home.read(names, mapped=mapped).items():
                yield name, tensor.to(self.parameters[name].dtype)


@dataclass(kw_only=True, eq=False)
class Component:
    """Networks that come and go together. name: for messages and reports. priority: what has less leaves first.
    network: what `Residency.acquire` gives; `None` for one that an adapter brought, which lives as long as the
    adapter."""

    name: str
    network: object
    parts: Sequence[Part]
    priority: int

    @property
    def present_bytes(self) -> int:
        return sum(part.size_bytes(part.parameters.keys() - part.absent) for part in self.parts)

    @property
    def absent_bytes(self) -> int:
        return sum(part.size_bytes(part.absent) for part in self.parts)

    @property
    def is_present(self) -> bool:
        return all(part.is_present for part in self.parts)

    @property
    def can_leave(self) -> bool:
        """Whether its weights can be read again as they are."""
        return all(part.is_kept() for part in self.parts)

    def drop(self) -> None:
        for part in self.parts:
            part.drop(part.parameters.keys() - part.absent)

    def bring_in(self) -> None:
        for part in self.parts:
            part.bring_in(part.absent)


def _size(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _stamp(parameter: nn.Parameter) -> tuple[int, int]:
    """Changes when an operation writes to the parameter, or another tensor takes its place."""
    return parameter._version, parameter.data_ptr()


def _sum(tensor: AnyTensor) -> int:
    """Changes with the value of any number, independent of the layout: the bits of all numbers, by exclusive or. In
    pieces, for PyTorch makes 64 bits of every number first."""
    if not tensor.numel():
        return 0
    rows = max(1, HASHED_AT_ONCE // max(1, tensor[0].numel())) if tensor.ndim else 1
    pieces = tensor.detach().split(rows) if tensor.ndim else (tensor.detach(),)
    return reduce(xor, (int(torch.hash_tensor(piece).view(torch.int64)) for piece in pieces))
