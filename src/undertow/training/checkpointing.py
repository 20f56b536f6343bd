"""Gradient checkpointing of a U-Net while it, or an adapter of it, is trained."""

from collections.abc import Generator
from contextlib import contextmanager

from undertow.unet.unet import UNet


@contextmanager
def checkpointing(unet: UNet, enabled: bool) -> Generator[None]:
    """A context in which the U-Net recomputes its activations in the backward pass; this needs training mode."""
    before = unet.gradient_checkpointing, unet.training
    unet.gradient_checkpointing = enabled
    unet.train(enabled)
    try:
        yield
    finally:
        unet.gradient_checkpointing = before[0]
        unet.train(before[1])
