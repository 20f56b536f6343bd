"""`torch.compile` for a U-Net: one graph, no breaks, no recompilation when values change."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch._dynamo  # so that its config is there to be patched

from undertow.unet.unet import UNet

P = ParamSpec("P")
T = TypeVar("T")

GRAPHS = 256
"""Graphs that may exist at once, over all networks of the process: one per size and set of ports. PyTorch's own limit
is 8, and with `fullgraph` the ninth size would be an error."""


def compile_unet(unet: UNet, *, freeze: bool = False) -> UNet:
    """Compiles `unet.predict` in place and returns `unet`; the checks of `forward`
    stay outside the graph.

    Every combination of tensor sizes and of present ports and conditioning has its own graph, made at its first call;
    timesteps, embeddings, slots, gains, residuals, perturbations and factors change freely. freeze: let the compiler
    fold and pack the weights (CPU); they must not change afterwards, and gradients are not available.
    """
    unet.predict = compiled(unet.predict, freeze)
    return unet


def compiled(predict: Callable[P, T], freeze: bool) -> Callable[P, T]:
    """One method of a network, with a graph for every combination of sizes and of what is present."""
    graphs = torch.compile(predict, fullgraph=True, dynamic=False, options={"freezing": True} if freeze else None)

    def run(*inputs: P.args, **named: P.kwargs) -> T:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
            return graphs(*inputs, **named)

    return run
