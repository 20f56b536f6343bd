"""`torch.compile` for a U-Net: one graph, no breaks, no recompilation when values change."""

import torch

from undertow.unet.unet import UNet


def compile_unet(unet: UNet, *, freeze: bool = False) -> UNet:
    """Compiles `unet.predict` in place and returns `unet`; the checks of `forward` stay outside the graph.

    Every combination of tensor sizes and of present ports and conditioning has its own graph, made at its first call;
    timesteps, embeddings, slots, gains and residuals change freely. freeze: let the compiler fold and pack the weights
    (CPU); they must not change afterwards, and gradients are not available.
    """
    unet.predict = torch.compile(  # type: ignore[method-assign]
        unet.predict, fullgraph=True, dynamic=False, options={"freezing": True} if freeze else None
    )
    return unet
