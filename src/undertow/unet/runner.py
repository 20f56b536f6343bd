"""How networks are evaluated, and what whoever has them evaluated must know about it."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from undertow.errors import InvalidInput
from undertow.unet.compiled import Graphs

Backend = Literal["eager", "compile"]
"""Names of runners."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a runner allows.

    observable: hooks on the layers inside a network are called. fixed_shapes: every combination of shapes
    costs a compilation, so that unused entries are better padded than left out. slots: LoRA in slots act and can be
    swapped. merging: weights may change between two runs.
    """

    observable: bool
    fixed_shapes: bool
    slots: bool
    merging: bool


@runtime_checkable
class Runner(Protocol):
    """Runs networks, U-Nets and ControlNets alike, and changes none of them."""

    @property
    def capabilities(self) -> Capabilities: ...

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        """`network(*inputs)`: its checks, its hooks, and its computation in the runner's way. Errors: the network's."""
        ...


class EagerRunner:
    """PyTorch as it is: every operation when its line is reached."""

    capabilities = Capabilities(observable=True, fixed_shapes=False, slots=True, merging=True)

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        return network(*inputs)


class CompiledRunner:
    """`torch.compile`; see `Graphs` for what has a graph of its own, and for `freeze`."""

    def __init__(self, *, freeze: bool = False):
        self._graphs = Graphs(freeze=freeze)
        self.capabilities = Capabilities(observable=False, fixed_shapes=True, slots=True, merging=not freeze)

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        return network(*inputs, compute=self._graphs.predict)


EAGER = EagerRunner()


def runner_named(backend: str) -> Runner:
    """Errors: `InvalidInput` for a name of no runner."""
    if backend not in ("eager", "compile"):
        raise InvalidInput("backend", repr(backend), "'eager' or 'compile'")
    return CompiledRunner() if backend == "compile" else EAGER
