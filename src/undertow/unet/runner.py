"""Runners evaluate networks, and declare what their callers must take into account."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from undertow.errors import InvalidInput
from undertow.unet.background import BackgroundGraphs
from undertow.unet.compiled import CompileMode, Graphs, Predicts
from undertow.unet.openvino import OpenVINONetworks
from undertow.unet.packed import PackedNetworks
from undertow.unet.stored_graphs import StoredGraphs

Backend = Literal["auto", "eager", "packed", "compile", "background", "openvino"]
"""Names of runners. "background" compiles as "compile" does, and computes eagerly meanwhile. "auto" stands for the one
that `choose_backend` names, when a network is known."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a runner supports.

    observable: hooks on the layers inside a network are called. fixed_shapes: every combination of shapes costs a
    compilation, so callers pad unused entries instead of leaving them out. slots: LoRA in slots take effect and can be
    swapped. merging: weights may change between two runs; where they may not, callers run networks into which LoRA are
    merged eagerly. repeatable: the same inputs give the same bits at every call. copies: it has weights of its own, in
    memory beside the network's.
    """

    observable: bool
    fixed_shapes: bool
    slots: bool
    merging: bool
    repeatable: bool = True
    copies: bool = False


@runtime_checkable
class Runner(Protocol):
    """Runs networks, U-Nets and ControlNets alike, without changing them."""

    @property
    def capabilities(self) -> Capabilities: ...

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        """`network(*inputs)` with its checks and hooks; the runner decides how `predict` is computed. Errors: those of
        the network."""
        ...


class EagerRunner:
    """Runs PyTorch operations one by one."""

    capabilities = Capabilities(observable=True, fixed_shapes=False, slots=True, merging=True)

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        return network(*inputs)


class PredictingRunner:
    """Runs networks by something else that computes their `predict`."""

    capabilities: Capabilities
    graphs: Predicts

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        return network(*inputs, compute=self.graphs.predict)


class PackedRunner(PredictingRunner):
    """Runs PyTorch operations one by one, with weights packed once, on CPUs, see `PackedNetworks`."""

    capabilities = Capabilities(observable=False, fixed_shapes=False, slots=True, merging=False, copies=True)

    def __init__(self):
        self.graphs = PackedNetworks()


class CompiledRunner(PredictingRunner):
    """Runs graphs made by `torch.compile`; `Graphs` says what has a graph of its own, and what `freeze` does.
    background: run eagerly until the graph is made, see `BackgroundGraphs`. stored: graphs stay on disk, see
    `StoredGraphs`; frozen ones do not, because they hold the weights, nor those of a mode of their own."""

    def __init__(
        self,
        *,
        freeze: bool = False,
        mode: CompileMode | None = None,
        background: bool = False,
        stored: bool = False,
    ):
        own = freeze or mode is not None
        graphs = StoredGraphs() if stored and not own else Graphs(freeze=freeze, mode=mode)
        self.mode = mode
        self.graphs = BackgroundGraphs(graphs) if background else graphs
        self.capabilities = Capabilities(
            observable=False,
            fixed_shapes=True,
            slots=True,
            merging=not freeze,
            repeatable=not background,
            copies=freeze,
        )


class OpenVINORunner(PredictingRunner):
    """Runs U-Nets by OpenVINO, and what that has no inputs for eagerly, see `OpenVINONetworks`. Errors:
    `MissingDependency`."""

    capabilities = Capabilities(observable=False, fixed_shapes=True, slots=True, merging=False, copies=True)

    def __init__(self):
        self.graphs = OpenVINONetworks()


EAGER = EagerRunner()


def runner_named(backend: str) -> Runner:
    """The runner of a backend. Errors: `InvalidInput` for an unknown name."""
    match backend:
        case "eager":
            return EAGER
        case "packed":
            return PackedRunner()
        case "compile" | "background":
            return CompiledRunner(background=backend == "background", stored=True)
        case "openvino":
            return OpenVINORunner()
        case _:
            raise InvalidInput("backend", repr(backend), "'eager', 'packed', 'compile', 'background' or 'openvino'")
