"""What the modules of one network compute, and where another network departs from it, module by module.

Two runs that differ in one module differ in all that follow it. So the second network is compared twice: as it computes
by itself, which shows how a departure grows; and with each module given what that of the first network received, which
shows what every module does by itself, however far its surroundings have departed already.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn

Key = tuple[str, int]
"""A module's name, and which call of it in a run."""

Between = str
"""The module that receives what its caller computed; empty for what a module returns."""


class Listener(Protocol):
    """Is told what modules receive and return; what it answers takes the tensor's place."""

    def before(self, key: Key, x: Tensor) -> Tensor | None: ...

    def after(self, key: Key, y: Tensor) -> Tensor | None: ...


@dataclass(kw_only=True, eq=False)
class Tape:
    """What modules received first and returned, copied to the CPU. limit_bytes: what does not fit is left out, and
    `is_full` says so. kinds: classes of the modules."""

    limit_bytes: float = math.inf
    inputs: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    outputs: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    size_bytes: int = 0
    is_full: bool = False

    def before(self, key: Key, x: Tensor) -> None:
        self._keep(self.inputs, key, x)

    def after(self, key: Key, y: Tensor) -> None:
        self._keep(self.outputs, key, y)

    def clear(self) -> None:
        self.inputs.clear()
        self.outputs.clear()
        self.size_bytes = 0

    def _keep(self, place: dict[Key, Tensor], key: Key, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.size_bytes + size > self.limit_bytes:
            self.is_full = True
            return
        self.size_bytes += size
        place[key] = tensor.detach().to("cpu", copy=True)


@dataclass(frozen=True, kw_only=True)
class OwnError:
    """How far a module departs by itself: `‖b - a‖ / ‖a‖` where both received the same. before: the module within it
    that receives what departs; empty where its own output does. received: how far what it received had departed by what
    its caller computes with the outputs of other modules."""

    module: str
    error: float
    before: Between = ""
    received: float = 0.0

    @property
    def place(self) -> str:
        """In words."""
        return f"{self.module}, in what it gives to {self.before}" if self.before else self.module


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The first departure in a run, as tensors: what a module received, and what the two made of it. key: its call."""

    own: OwnError
    key: Key
    given: Tensor | None
    a: Tensor
    b: Tensor


@dataclass(kw_only=True, eq=False)
class Forced:
    """Gives each module what the tape holds, and compares what comes of it. root: the name of what calls the outermost
    modules. errors: in the order of execution. first: the first one above the tolerance."""

    tape: Tape
    tolerance: float
    root: str
    errors: list[OwnError] = field(default_factory=list[OwnError])
    first: Evidence | None = None
    _within: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])

    def before(self, key: Key, x: Tensor) -> Tensor | None:
        caller = self._within[-1][0] if self._within else self.root
        expected = self.tape.inputs.get(key)
        if expected is None or expected.shape != x.shape:
            self._within.append((key[0], 0.0))
            return None
        error = relative_error(x, expected)
        self._within.append((key[0], error))
        self._note(OwnError(module=caller, error=error, before=key[0]), key, None, expected, x)
        return _like(expected, x)

    def after(self, key: Key, y: Tensor) -> Tensor | None:
        _, received = self._within.pop()
        expected = self.tape.outputs.get(key)
        if expected is None or expected.shape != y.shape:
            return None
        own = OwnError(module=key[0], error=relative_error(y, expected), received=received)
        self._note(own, key, self.tape.inputs.get(key), expected, y)
        return _like(expected, y)

    def _note(self, own: OwnError, key: Key, given: Tensor | None, a: Tensor, b: Tensor) -> None:
        self.errors.append(own)
        if self.first is None and own.error > self.tolerance:
            copies = (None if one is None else one.detach().to("cpu", copy=True) for one in (given, a, b))
            kept_given, kept_a, kept_b = copies
            assert kept_a is not None
            assert kept_b is not None
            self.first = Evidence(own=own, key=key, given=kept_given, a=kept_a, b=kept_b)


@dataclass(kw_only=True, eq=False)
class Grown:
    """Compares outputs as they are. errors: by module, the largest of its calls, in the order of execution."""

    tape: Tape
    errors: dict[str, float] = field(default_factory=dict[str, float])

    def before(self, key: Key, x: Tensor) -> None:
        """Nothing: outputs tell."""

    def after(self, key: Key, y: Tensor) -> None:
        expected = self.tape.outputs.get(key)
        if expected is not None and expected.shape == y.shape:
            self.errors[key[0]] = max(relative_error(y, expected), self.errors.get(key[0], 0.0))


@contextmanager
def listening(modules: Mapping[str, nn.Module], listener: Listener) -> Generator[None]:
    """Tells the listener of these modules meanwhile, by their names here. Calls are counted from 0."""
    calls: Counter[str] = Counter()
    open_calls: dict[str, list[Key]] = {}

    def hooks(name: str) -> tuple[Callable[..., object], Callable[..., object]]:
        def before(module: nn.Module, inputs: tuple[object, ...]) -> object:
            del module
            key = (name, calls[name])
            calls[name] += 1
            open_calls.setdefault(name, []).append(key)
            first = inputs[0] if inputs else None
            if not isinstance(first, Tensor):
                first = torch.empty(0)
                listener.before(key, first)
                return None
            instead = listener.before(key, first)
            return None if instead is None else (instead, *inputs[1:])

        def after(module: nn.Module, inputs: tuple[object, ...], output: object) -> object:
            del module, inputs
            key = open_calls[name].pop()
            found = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(found, Tensor):
                found = torch.empty(0)
            instead = listener.after(key, found)
            return instead if found is output else None

        return before, after

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name, module in modules.items():
            before, after = hooks(name)
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def modules_of(network: nn.Module, prefix: str, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules inside a network that patterns match, as `prefix.name`. Containers that only hold others are never
    called, so that they do no harm."""
    named = ((f"{prefix}.{name}", module) for name, module in network.named_modules() if name)
    return {name: module for name, module in named if any(fnmatchcase(name, pattern) for pattern in patterns)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """`‖found - expected‖ / ‖expected‖`; infinite where one of them is not finite and the other is, or differs from
    zeros."""
    b, a = (one.detach().to("cpu", torch.float32) for one in (found, expected))
    if torch.equal(a, b):
        return 0.0
    difference, size = float((b - a).norm()), float(a.norm())
    if not math.isfinite(difference) or size == 0.0:
        return math.inf
    return difference / size


def _like(expected: Tensor, x: Tensor) -> Tensor:
    """What the first network had, as the second has it; copied, since what follows may write into it."""
    return expected.to(device=x.device, dtype=x.dtype, copy=True)
