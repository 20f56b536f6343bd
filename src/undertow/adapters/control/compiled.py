"""`torch.compile` for a ControlNet, as for a U-Net: one graph, no breaks, no recompilation when values change."""

from undertow.adapters.control.controlnet import ControlNet
from undertow.unet.compiled import compiled


def compile_control(network: ControlNet, *, freeze: bool = False) -> ControlNet:
    """Compiles `network.predict` in place and returns `network`; the checks of `forward` stay outside the graph.
    freeze: as in `compile_unet`."""
    network.predict = compiled(network.predict, freeze)
    return network
