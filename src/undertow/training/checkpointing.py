"""Gradient checkpointing of a U-Net while it, or what hangs on it, is trained."""

from collections.abc import Generator
from contextlib import contextmanager

from undertow.unet.unet import UNet


@contextmanager
def checkpointing(unet: UNet, wanted: bool) -> Generator[None]:
    """Within it the U-Net recomputes its activations in the backward pass, which it does in training mode only."""
    before = unet.gradient_checkpointing, unet.training
    unet.gradient_checkpointing = wanted
    unet.train(wanted)
    try:
        yield
    finally:
        unet.gradient_checkpointing = before[0]
        unet.train(before[1])
