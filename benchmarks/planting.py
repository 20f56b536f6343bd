"""How a fault is planted in the forwards of one row: around modules as they are called, or in place in numbers."""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from undertow.adapters.image_prompt.image_port import ImagePromptRow
from undertow.attention.chunked import chunked_attention
from undertow.engine.fault import Cause
from undertow.engine.probing import named_networks
from undertow.engine.rows import Row

LARGEST = {"overflow": 2e5, "control": 2e5, "adapter": 2e5, "hidden": 7e4, "scores": 3e4}
"""The largest number that a module gives instead of its own."""

BEYOND_RANGE = 1.25
"""Times a type's largest number, where weights are larger by as much as that takes."""

BEYOND = 1e35
"""Times that in bfloat16, which has float32's range."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """module: where it is planted, and what is to be named, unless `named` says it in another way."""

    kind: str
    module: str
    step: int
    branch: str
    cause: Cause
    named: str = ""

    @property
    def expected(self) -> tuple[str, Cause, int, int, str]:
        """Module, cause, request, step and branch that a fault is to name."""
        return self.named or self.module, self.cause, 0, self.step, self.branch


class Planter:
    """A probe that plants a fault while forwards with its row run, replays included."""

    def __init__(self, fault: Fault, dtype: torch.dtype):
        self.fault, self.dtype = fault, dtype

    def concerned(self, rows: Sequence[Row]) -> list[int]:
        where = (0, self.fault.step, self.fault.branch)
        return [i for i, row in enumerate(rows) if (row.origin.request, row.origin.step, row.origin.branch) == where]

    def located(self, rows: Sequence[Row]) -> tuple[nn.Module, list[Row]]:
        """The module, and the rows of its batch."""
        for prefix, network, own in reversed(named_networks(rows)):
            name = self.fault.module
            if not prefix or name.startswith(f"{prefix}."):
                return network.get_submodule(name.removeprefix(f"{prefix}.") if prefix else name), own
        raise AssertionError(self.fault)

    @property
    def largest(self) -> float:
        return LARGEST[self.fault.kind] * (BEYOND if self.dtype == torch.bfloat16 else 1.0)

    def given(self, row: Row) -> tuple[Tensor, float]:
        """What the network is given that is broken, and by what."""
        match self.fault.kind:
            case "conditioning":
                assert row.conditioning.context is not None
                return row.conditioning.context, float("nan")
            case "input":
                return row.latents, float("inf")
            case "timestep":
                return row.timestep, float("nan")
            case "image":
                assert row.adapters is not None
                pictures = [one for one in row.adapters.inputs if isinstance(one, ImagePromptRow)]
                return pictures[0].sites[self.fault.module].keys, float("nan")
            case _:
                raise AssertionError(self.fault.kind)


GIVEN = ("conditioning", "input", "timestep", "image")
"""Kinds that are planted in what the network is given."""


class AroundModules(Planter):
    """Plants where a row's part of a module's output passes, so that other rows of the forward are left as they are."""

    def wants(self, rows: Sequence[Row]) -> bool:
        return bool(self.concerned(rows))

    @contextmanager
    def attached(self, unet: nn.Module, rows: Sequence[Row]) -> Generator[None]:
        row = rows[self.concerned(rows)[0]]
        with ExitStack() as until:
            if self.fault.kind in GIVEN:
                until.enter_context(_replaced(*self.given(row)))
                yield
                return
            module, own = self.located(rows)
            match self.fault.kind:
                case "weight" | "control-weight":
                    until.enter_context(_replaced(module.weight, float("nan")))
                case "slots":
                    until.enter_context(_replaced(module.slots.up, float("nan")))
                case "adapter":
                    until.enter_context(_louder_slots(module, self.largest))
                case "scores":
                    kernel, module.kernel = module.kernel, chunked_attention
                    until.callback(setattr, module, "kernel", kernel)
                    for name in ("to_q", "to_k"):
                        until.enter_context(_scaled(module.get_submodule(name), self.concerned(own), self.largest))
                case _:
                    until.enter_context(_scaled(module, self.concerned(own), self.largest))
            yield


class InPlace(Planter):
    """Plants in numbers that compiled graphs read, before each forward with the row, and takes it back before the next
    one without it: no hook, so that the graph runs. factor: of the weights, for results that overflow."""

    def __init__(self, fault: Fault, dtype: torch.dtype, factor: float = 1.0):
        super().__init__(fault, dtype)
        self.factor = factor
        self._undo: list[Callable[[], Any]] = []

    def wants(self, rows: Sequence[Row]) -> bool:
        concerned = self.concerned(rows)
        if not concerned:
            self.undo()
        elif not self._undo:
            self._plant(rows, rows[concerned[0]])
        return False

    @contextmanager
    def attached(self, unet: nn.Module, rows: Sequence[Row]) -> Generator[None]:
        yield

    def undo(self) -> None:
        for one in self._undo:
            one()
        self._undo.clear()

    def _plant(self, rows: Sequence[Row], row: Row) -> None:
        if self.fault.kind in GIVEN:
            self._put(*self.given(row))
            return
        module, _ = self.located(rows)
        match self.fault.kind:
            case "weight" | "control-weight":
                self._put(module.weight, float("nan"))
            case "slots":
                self._put(module.slots.up, float("nan"))
            case _:
                for weight in module.parameters(recurse=False):
                    self._scale(weight)

    def _put(self, tensor: Tensor, value: float) -> None:
        place = (0,) * tensor.ndim
        before = tensor[place].clone()
        with torch.inference_mode():
            tensor[place] = value
        self._undo.append(partial(_set, tensor, place, before))

    def _scale(self, weight: Tensor) -> None:
        before = weight.detach().clone()
        with torch.inference_mode():
            weight.copy_(before.double() * self.factor)  # which is more than float32 holds, for bfloat16
        self._undo.append(partial(_set, weight, ..., before))


def _set(tensor: Tensor, place: Any, value: Tensor) -> None:
    with torch.inference_mode():
        tensor[place] = value


@contextmanager
def _replaced(tensor: Tensor, value: float) -> Generator[None]:
    place = (0,) * tensor.ndim
    before = tensor[place].clone()
    _set(tensor, place, torch.tensor(value))
    try:
        yield
    finally:
        _set(tensor, place, before)


@contextmanager
def _scaled(module: nn.Module, rows: Sequence[int], largest: float) -> Generator[None]:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        output = plain(*args, **kwargs).clone()
        for index in rows:
            row = output[index].float()
            output[index] = (row * (largest / row.abs().max())).to(output.dtype)
        return output

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _louder_slots(module: Any, largest: float) -> Generator[None]:
    """What slots add is scaled so that its largest number is this."""
    plain, slots = module.forward, module.slots
    kept: list[Tensor] = []  # at the first call: slots are filled after probes are attached

    def forward(x: Tensor, weights: Any = None) -> Tensor:
        if weights is None:
            return plain(x)
        if not kept:
            kept.append(slots.up.clone())
        before = kept[0]
        with torch.inference_mode():
            slots.up.copy_(before)
            change = plain(x, weights).float() - plain(x, None).float()
            slots.up.copy_(before.float() * (largest / change.abs().max()))
        return plain(x, weights)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        for before in kept:
            with torch.inference_mode():
                slots.up.copy_(before)


def factor_for(
    fault: Fault, module: nn.Module, sizes: Mapping[tuple[str, int, str], float], dtype: torch.dtype
) -> float:
    """By which a module's weights give a result that overflows; 0 where the type holds no such weights."""
    limit = torch.finfo(dtype).max
    wanted = BEYOND_RANGE * limit / sizes[fault.module, fault.step, fault.branch]
    largest = max(float(weight.detach().abs().max()) for weight in module.parameters(recurse=False))
    return wanted if largest * wanted < limit else 0.0


def choice(pick: random.Random, shares: Mapping[str, int]) -> str:
    return pick.choices(list(shares), weights=list(shares.values()))[0]
