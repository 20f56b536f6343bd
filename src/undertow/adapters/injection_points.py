"""Where adapters can act in a U-Net, as a list: source document 000's injection points."""

from dataclasses import dataclass
from typing import Literal

from undertow.nn.adaptable import Conv2d, Linear
from undertow.unet.unet import UNet

Port = Literal["weights", "residuals", "image"]


@dataclass(frozen=True, kw_only=True)
class InjectionPoint:
    """port: which kind of adapter acts here: "weights" (LoRA) changes a layer, "residuals" (ControlNet, T2I-Adapter)
    adds to a stored skip connection or behind the middle block, "image" (IP-Adapter) gives a cross-attention keys and
    values. name: of the layer; `Adapter.blocks` scales it. shape: of the layer's weight, where it has one."""

    port: Port
    name: str
    shape: tuple[int, ...] = ()


def injection_points(unet: UNet) -> tuple[InjectionPoint, ...]:
    """Every one of them, port by port, in the order of the network."""
    layers = [
        InjectionPoint(port="weights", name=name, shape=tuple(layer.weight.shape))
        for name, layer in unet.named_modules()
        if isinstance(layer, Linear | Conv2d)
    ]
    stored = range(len(unet.config.skip_shapes(64, 64)))  # as many at every size
    residuals = [InjectionPoint(port="residuals", name=name) for name in (*(f"skips.{i}" for i in stored), "middle")]
    image = [InjectionPoint(port="image", name=name) for name in unet.config.cross_attentions()]
    return (*layers, *residuals, *image)
