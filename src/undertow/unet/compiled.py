"""`torch.compile` for a U-Net: one graph, no breaks, no recompilation when values change."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch._dynamo  # so that its config is there to be patched
from torch import Tensor

from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.unet import UNet

T = TypeVar("T")

GRAPHS = 256
"""Graphs that may exist at once, over all networks of the process: one per size and set of ports. PyTorch's own limit
is 8, and with `fullgraph` the ninth size would be an error."""


def compile_unet(unet: UNet, *, freeze: bool = False) -> UNet:
    """Compiles `unet.predict` and `unet.predict_with_attention` in place and returns `unet`; the checks of `forward`
    stay outside the graph.

    Every combination of tensor sizes and of present ports and conditioning has its own graph, made at its first call;
    timesteps, embeddings, slots, gains, residuals, perturbations and factors change freely. freeze: let the compiler
    fold and pack the weights (CPU); they must not change afterwards, and gradients are not available.
    """
    unet.predict = _compiled(unet.predict, freeze)
    unet.predict_with_attention = _compiled(unet.predict_with_attention, freeze)
    return unet


def _compiled(predict: Callable[[Tensor, Tensor, Conditioning, Ports], T], freeze: bool) -> Callable[..., T]:
    compiled = torch.compile(predict, fullgraph=True, dynamic=False, options={"freezing": True} if freeze else None)

    def run(latents: Tensor, timesteps: Tensor, conditioning: Conditioning, ports: Ports) -> T:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
            return compiled(latents, timesteps, conditioning, ports)

    return run
