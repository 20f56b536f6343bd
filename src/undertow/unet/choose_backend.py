"""Which backend `backend="auto"` takes: a pure function of what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from undertow.extras import is_installed
from undertow.nn.quantized import quantized_layers
from undertow.unet.backend_measurements import BackendMeasurements, Forward, stored_backends
from undertow.unet.unet import UNet

GAIN = 0.95
"""Of the eager seconds that another backend may take at most to be chosen: eager layers can be watched, and nothing has
to be made for them."""

TAKEN: Mapping[str, str] = {"packed": "packed", "compile": "background", "openvino": "openvino"}
"""The backend that is taken where one was the fastest: nobody is to wait for a compiler."""

HOW = "undertow bench backends MODEL does it"


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """A backend, by its name, and why it was chosen."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"backend {self.name}: {self.reason}"


def choose_backend(wanted: Forward, measured: BackendMeasurements | None, *, openvino: bool = True) -> BackendChoice:
    """The backend for forwards like this one. measured: on this machine. openvino: whether it is installed."""
    near = None if measured is None else measured.near(wanted)
    if near is None:
        return BackendChoice(name="eager", reason=f"nothing was measured here for {wanted}; {HOW}")
    seconds = {name: one.seconds for name, one in near.timings.items() if openvino or name != "openvino"}
    where = f"{near.forward}, measured on {near.date}"
    fastest = min(seconds, key=seconds.__getitem__)
    figures = ", ".join(f"{name} {taken:.3g} s" for name, taken in sorted(seconds.items(), key=lambda one: one[1]))
    if fastest == "eager" or seconds[fastest] > GAIN * seconds["eager"]:
        return BackendChoice(name="eager", reason=f"no other is faster by {1 - GAIN:.0%}: {figures} for {where}")
    return BackendChoice(name=TAKEN[fastest], reason=f"the fastest: {figures} for {where}")


def backend_for(unet: UNet, device: torch.device | str | None) -> BackendChoice:
    """The backend for a network at the size that it was trained at, by what is stored on this machine. What plain
    weights took says nothing about quantized ones."""
    schemes = sorted({*quantized_layers(unet).values()})
    if schemes:
        reason = f"nothing is measured of backends for weights in {' and '.join(schemes)}"
        return BackendChoice(name="eager", reason=reason)
    measured = stored_backends("cpu" if device is None else device)
    return choose_backend(Forward.of(unet.config, unet.dtype), measured, openvino=is_installed("openvino"))
