"""`torch.compile` for networks: one graph without breaks, and no recompilation when only values change."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from undertow.attention.kernel import AttentionKernel
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Slots
from undertow.shapes import Latents, Timesteps
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.config import UNetConfig
from undertow.unet.tensor_trees import tensors_of, with_tensors
from undertow.unet.unet import UNet, UNetOutput

if TYPE_CHECKING:  # torch imports its compiler, which takes seconds, when it is first used
    import torch._dynamo
    import torch._dynamo.exc
    import torch._inductor.config

GRAPHS = 256
"""Graphs that may exist at once, over all networks of the process: one per size and set of ports. PyTorch's own limit
is 8, and with `fullgraph` the ninth size would be an error."""


CompileMode = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""Of `torch.compile`, for GPUs: record a graph's kernels once and replay them (CUDA graphs), try many kernels for every
product, or both."""

RECORDED = ("reduce-overhead", "max-autotune")
"""Modes in which a replay writes where the one before has written."""


class Graphs:
    """Runs the compiled `predict` of networks: U-Nets and ControlNets alike.

    Every combination of tensor sizes and of present ports and conditioning has a graph of its own, compiled at its
    first call; timesteps, embeddings, slots, gains, residuals, perturbations and factors may change freely. Networks of
    the same structure share their graphs. freeze: let the compiler fold and pack the weights (CPU). Each network then
    has graphs of its own, and its weights must not change afterwards, while slots may. mode: of `torch.compile`; `None`
    for its default.
    """

    def __init__(self, *, freeze: bool = False, mode: CompileMode | None = None):
        self.freeze, self.mode = freeze, mode

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        """Made at the first call, because it imports the compiler."""
        function = _predict_frozen if self.freeze else _predict
        return torch.compile(function, fullgraph=True, dynamic=False, mode=self.mode)

    def predict(self, network: nn.Module, *inputs: Any) -> Any:
        """`network.predict(*inputs)`. Errors: `InvalidInput` when freezing while gradients are enabled."""
        with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
            if self.mode in RECORDED:
                torch.compiler.cudagraph_mark_step_begin()
                found = self._computed(network, *inputs)
                return with_tensors(found, (tensor.clone() for tensor in tensors_of(found)))
            return self._computed(network, *inputs)

    def _computed(self, network: nn.Module, *inputs: Any) -> Any:
        if not self.freeze:
            return self._compiled(network, *inputs)
        if torch.is_grad_enabled():
            raise InvalidInput("gradients", "enabled", "none: frozen weights have no gradients", "torch.no_grad()")
        # An option of the backend would come too late: Dynamo reads the switch when it traces.
        with torch._inductor.config.patch(freezing=True):
            return self._compiled(Predictor(network), _slots(network), *inputs)

    def predict_made(self, network: nn.Module, *inputs: Any) -> Any:
        """The same, where nothing has to be compiled for it. Errors: `NoGraph`."""
        try:
            with torch._dynamo.config.patch(error_on_recompile=True):
                return self.predict(network, *inputs)
        except torch._dynamo.exc.RecompileError as error:
            raise NoGraph(str(error)) from error


class NoGraph(Exception):
    """There is none for a call."""


class Predicts(Protocol):
    """Computes `predict` of networks: `Graphs`, those that are stored or made in the background, or another library."""

    def predict(self, network: nn.Module, *inputs: Any) -> Any: ...


class MakesGraphs(Predicts, Protocol):
    """Makes graphs for `predict` as they are needed."""

    def predict_made(self, network: nn.Module, *inputs: Any) -> Any:
        """`predict` in a graph that there is. Errors: `NoGraph`."""
        ...


class CompiledUNet(UNet):
    """A U-Net that computes in compiled graphs; the checks of `forward` stay outside."""

    def __init__(self, config: UNetConfig, attention: AttentionKernel | None = None, graphs: Predicts | None = None):
        super().__init__(config, attention)
        self._graphs = Graphs() if graphs is None else graphs

    @classmethod
    def of(cls, unet: UNet, graphs: Predicts | None = None) -> "CompiledUNet":
        """A compiled network that shares its layers with `unet`."""
        with torch.device("meta"):
            compiled = cls(unet.config, unet.kernel, graphs)
        for name, child in unet.named_children():
            compiled.add_module(name, child)
        compiled.training, compiled.gradient_checkpointing = unet.training, unet.gradient_checkpointing
        return compiled

    def forward(
        self,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning | None = None,
        ports: Ports | None = None,
        observed: tuple[str, ...] | None = None,
        compute: Callable[..., UNetOutput] | None = None,
    ) -> Float[Tensor, "batch out_channels height width"] | UNetOutput:
        compute = self._graphs.predict if compute is None else compute
        return super().forward(latents, timesteps, conditioning, ports, observed, compute)


class Predictor(nn.Module):
    """A module whose `forward` is the network's `predict`, for `functional_call`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network.predict(*inputs)  # pyright: ignore[reportCallIssue]  networks have one


def _predict(network: Any, *inputs: Any) -> Any:
    return network.predict(*inputs)


def _predict_frozen(predictor: nn.Module, slots: dict[str, Tensor], *inputs: Any) -> Any:
    return functional_call(predictor, slots, inputs)


def _slots(network: nn.Module) -> dict[str, Tensor]:
    """The slots' buffers as separate tensors, passed as inputs: Dynamo freezes every tensor that it finds in a
    module."""
    return {
        f"network.{name}.{buffer}": tensor.detach()
        for name, module in network.named_modules()
        if isinstance(module, Slots)
        for buffer, tensor in module.named_buffers()
    }
