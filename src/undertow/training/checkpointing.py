"""Gradient checkpointing of a U-Net while it, or an adapter of it, is trained."""

from collections.abc import Generator
from contextlib import contextmanager

from undertow.errors import InvalidInput
from undertow.lookup import did_you_mean
from undertow.unet.blocks import Checkpointing, Stage
from undertow.unet.unet import UNet


@contextmanager
def checkpointing(unet: UNet, wanted: Checkpointing) -> Generator[None]:
    """A context in which the U-Net recomputes its activations in the backward pass, all or those of the stages named;
    this needs training mode. Errors: `InvalidInput` for a name that is no stage."""
    stages = [module.name for module in unet.modules() if isinstance(module, Stage)]
    for name in () if isinstance(wanted, bool) else wanted:
        if name not in stages:
            remedy = did_you_mean(name, stages).rstrip()
            raise InvalidInput("gradient_checkpointing", repr(name), f"blocks of {', '.join(stages)}", remedy)
    before = unet.gradient_checkpointing, unet.training
    unet.gradient_checkpointing = wanted
    unet.train(bool(wanted))
    try:
        yield
    finally:
        unet.gradient_checkpointing = before[0]
        unet.train(before[1])
