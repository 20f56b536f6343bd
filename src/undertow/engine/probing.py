"""What looks into networks while they are evaluated; the engine attaches it around one forward and takes it off."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from undertow.engine.rows import Row
from undertow.unet.runner import EAGER, Runner
from undertow.unet.unet import UNet


class ForwardProbe(Protocol):
    """Looks into forwards of U-Nets, or changes what flows in them."""

    def wants(self, rows: Sequence[Row]) -> bool:
        """Whether a forward of these rows concerns it. Every other forward runs as if it did not exist."""
        ...

    def attached(self, unet: UNet, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Looks into the network meanwhile, whose batch begins with these rows; what the batch was padded with follows
        them. Nothing of it is left in the network afterwards."""
        ...


def attach(probes: Sequence[ForwardProbe], rows: Sequence[Row], runner: Runner, until: ExitStack) -> Runner:
    """Attaches the probes that want a forward of these rows, until the stack is left, and returns what runs it: graphs
    are made of the layers as they are without hooks, so a forward that is looked into runs eagerly as a whole."""
    wanting = [probe for probe in probes if probe.wants(rows)]
    for probe in wanting:
        until.enter_context(probe.attached(rows[0].unet, rows))
    return runner if runner.capabilities.observable or not wanting else EAGER
