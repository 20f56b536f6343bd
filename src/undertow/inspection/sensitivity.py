"""What quantizing each layer does to a model's predictions, so that the layers that suffer most can stay as they are.

Each layer is quantized alone, and the predicted noise compared with that of the model as it is, at three levels of
noise of a picture that it drew itself; layers of the autoencoder are compared by the decoded picture. One at a time
says which layers matter, and not what all of them do together: `measure_error` does.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from undertow.checkpoints.keymap.prefixes import Component
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.forward import forward
from undertow.errors import InvalidInput
from undertow.inspection.noisy_picture import NoisyPicture
from undertow.nn.quantized import QuantizedLinear, quantized_layers, require_scheme
from undertow.quantization import Quantization, Scheme


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """name: with its component. error: `‖quantized - as it is‖ / ‖as it is‖` of the prediction over all levels of
    noise, of layers of the autoencoder of the picture. numbers: of its weight."""

    name: str
    error: float
    numbers: int


def nothing(_done: int, _all: int) -> None:
    """Takes no notice of progress."""


@torch.no_grad()
def measure_sensitivity(
    probe: NoisyPicture,
    scheme: Scheme,
    *,
    only: Sequence[str] = ("*",),
    progress: Callable[[int, int], None] = nothing,
) -> tuple[LayerSensitivity, ...]:
    """The layers that match one of the patterns `only`, the most sensitive first. Errors: `InvalidInput` for a scheme
    that the device has not, patterns that match nothing, and a model that is quantized already."""
    model = probe.model
    require_scheme(scheme, probe.latents.device)
    networks = networks_of(model)
    if any(quantized_layers(network) for network in networks.values()):
        raise InvalidInput("model", "quantized already", "a plain one to compare with", "load it with quantize='none'")
    every = Quantization(rules=(("*", scheme),))
    rules = Quantization(rules=(("*", "none"), *((pattern, scheme) for pattern in only)))
    shapes = shapes_of_model(model)
    layers: dict[Component, dict[str, Scheme]] = {
        component: rules.layers(component, one) for component, one in shapes.items()
    }
    names = [f"{component}.{layer}" for component, one in shapes.items() for layer in every.layers(component, one)]
    Quantization(rules=tuple((pattern, scheme) for pattern in only)).require_matches(names, "only")
    before = {which: _seen(probe, which) for which in ("noise", "picture")}
    found: list[LayerSensitivity] = []
    count = sum(map(len, layers.values()))
    for component, chosen in layers.items():
        which = "picture" if component == "vae" else "noise"
        for layer, own in chosen.items():
            with quantized_for_now(model, {component: {layer: own}}):
                error = _relative(_seen(probe, which), before[which])
            weight = cast(Tensor, networks[component].get_submodule(layer).weight)
            found.append(LayerSensitivity(name=f"{component}.{layer}", error=error, numbers=weight.numel()))
            progress(len(found), count)
    return tuple(sorted(found, key=lambda one: -one.error))


@torch.no_grad()
def measure_error(probe: NoisyPicture, rules: Quantization) -> float:
    """`‖quantized - as it is‖ / ‖as it is‖` of the predicted noise with all layers of the rules quantized at once."""
    before = _seen(probe, "noise")
    layers: dict[Component, dict[str, Scheme]] = {
        component: rules.layers(component, one) for component, one in shapes_of_model(probe.model).items()
    }
    with quantized_for_now(probe.model, layers):
        return _relative(_seen(probe, "noise"), before)


def most_sensitive(found: Sequence[LayerSensitivity], count: int) -> tuple[str, ...]:
    """The names of the first ones."""
    return tuple(one.name for one in sorted(found, key=lambda one: -one.error)[:count])


def networks_of(model: LoadedModel) -> dict[Component, nn.Module]:
    """The networks of a model whose layers can be quantized, by component, with names as in `Quantization.layers`."""
    found: dict[Component, nn.Module] = {}
    if model.unet is not None:
        found["unet"] = model.unet
    for encoder in () if model.text is None else model.text.encoders:
        found[encoder.kind] = nn.ModuleDict({ROOT.rstrip("."): encoder.clip})
    if model.vae is not None:
        found["vae"] = model.vae
    return found


def shapes_of_model(model: LoadedModel) -> dict[Component, dict[str, tuple[int, ...]]]:
    """Shapes of the linear layers' weights, by component."""
    return {
        component: {name: tuple(weight.shape) for name, weight in network.named_parameters()}
        for component, network in networks_of(model).items()
    }


@contextmanager
def quantized_for_now(model: LoadedModel, layers: Mapping[Component, Mapping[str, Scheme]]) -> Generator[None]:
    """A context in which these layers are quantized; the layers themselves come back after it."""
    networks, replaced = networks_of(model), list[tuple[nn.Module, str, nn.Module]]()
    try:
        for component, chosen in layers.items():
            for name, scheme in chosen.items():
                owner_name, _, attribute = name.rpartition(".")
                owner: Any = networks[component].get_submodule(owner_name)
                layer = owner.get_submodule(attribute)
                replaced.append((owner, attribute, layer))
                setattr(owner, attribute, QuantizedLinear.of(layer, scheme))
        yield
    finally:
        for owner, attribute, layer in replaced:
            setattr(owner, attribute, layer)


@torch.inference_mode()
def _seen(probe: NoisyPicture, which: str) -> Tensor:
    """Predictions at all levels of noise, or the picture behind the lowest."""
    if which == "picture":
        return probe.model.require_vae().decode(probe.latents[-1:])
    return torch.cat([outcome.prediction for outcome in forward(probe.rows(()), probe.manager)])


def _relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))
