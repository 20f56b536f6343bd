"""The state of a U-Net that adapters may change, so that it can be kept, compared and put back bit for bit."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from undertow.adapters.lora.bank import Tenant
from undertow.adapters.lora.kind import LoraKind
from undertow.adapters.manager import AdapterManager
from undertow.doors import checked
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Conv2d, Linear
from undertow.unet.unet import UNet

Port = Literal["weights", "residuals", "image"]


@dataclass(frozen=True, kw_only=True)
class InjectionPoint:
    """A place where adapters act. port: which kind of adapter acts there: "weights" (LoRA) changes a layer, "residuals"
    (ControlNet, T2I-Adapter) adds to a stored skip connection or after the middle block, "image" (IP-Adapter) gives a
    cross-attention keys and values. name: of the layer; `Adapter.blocks` scales it. shape: of the layer's weight, if it
    has one."""

    port: Port
    name: str
    shape: tuple[int, ...] = ()


def injection_points(unet: UNet) -> tuple[InjectionPoint, ...]:
    """All injection points, port by port, in the order of the network."""
    layers = [
        InjectionPoint(port="weights", name=name, shape=tuple(layer.weight.shape))
        for name, layer in unet.named_modules()
        if isinstance(layer, Linear | Conv2d)
    ]
    stored = range(len(unet.config.skip_shapes(64, 64)))  # as many at every size
    residuals = [InjectionPoint(port="residuals", name=name) for name in (*(f"skips.{i}" for i in stored), "middle")]
    image = [InjectionPoint(port="image", name=name) for name in unet.config.cross_attentions()]
    return (*layers, *residuals, *image)


AnyTensor = Shaped[Tensor, "..."]


@dataclass(frozen=True, kw_only=True, eq=False)
class StateSnapshot:
    """A saved state. tensors: copies of all parameters and slots, on the host. merged, tenants: the adapters that they
    contain. pristine: base weights of what is merged. taken_at: when it was taken."""

    tensors: Mapping[str, AnyTensor] = field(repr=False)
    merged: tuple[Hashable, ...]
    merged_titles: tuple[str, ...]
    pristine: Mapping[str, AnyTensor] = field(repr=False)
    tenants: tuple[Tenant, ...]
    attention_masks: Mapping[str, AnyTensor] = field(repr=False)
    hash: str
    taken_at: datetime


class UNetState:
    """The current state of a U-Net, as source document 000 lists it.

    layer_weights: parameters by name. active_adapters: titles of what is merged or in slots. attention_masks: masks
    that callers store with the state, by name; the network receives its masks with each call and reads none of these.
    injection_points: where adapters can act.
    """

    @checked
    def __init__(self, unet: UNet, manager: AdapterManager):
        self._unet = unet
        self._lora = manager.kind(LoraKind)
        self.attention_masks: dict[str, AnyTensor] = {}

    @property
    def layer_weights(self) -> Mapping[str, AnyTensor]:
        """The parameters themselves, by name."""
        return dict(self._unet.named_parameters())

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """Titles of what is merged into the weights, and of what is in slots."""
        bank = self._lora.bank
        return (*self._lora.merged.titles, *(() if bank is None else (tenant.title for tenant in bank.tenants)))

    @property
    def injection_points(self) -> tuple[InjectionPoint, ...]:
        """Every place where an adapter can act."""
        return injection_points(self._unet)

    @property
    def last_update(self) -> datetime:
        """When weights or slots were last written, by adapters or by `restore`."""
        bank = self._lora.bank
        merged = self._lora.merged.changed_at
        return merged if bank is None else max(merged, bank.changed_at)

    @property
    def hash(self) -> str:
        """SHA-256 of the names and bits of all weights."""
        return weights_hash(self._unet)

    def snapshot(self) -> StateSnapshot:
        """Copies everything, which takes as much memory as the U-Net with its slots."""
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(self._unet).items()}
        bank = self._lora.bank
        return StateSnapshot(
            tensors=tensors,
            merged=self._lora.merged.present,
            merged_titles=self._lora.merged.titles,
            pristine=self._lora.merged.pristine,
            tenants=() if bank is None else bank.tenants,
            attention_masks={name: mask.clone() for name, mask in self.attention_masks.items()},
            hash=self.hash,
            taken_at=datetime.now(UTC),
        )

    @torch.no_grad()
    @checked
    def restore(self, snapshot: StateSnapshot) -> None:
        """Restores a snapshot in place, bit for bit. Errors: `InvalidInput` for a snapshot of another network, which
        changes nothing."""
        tensors = _tensors(self._unet)
        if differing := _differing(tensors, snapshot.tensors):
            raise InvalidInput("snapshot", f"{differing} differs", "one taken of this very U-Net, with the same slots")
        for name, tensor in tensors.items():
            tensor.copy_(snapshot.tensors[name])
        self._lora.merged.adopt(snapshot.merged, snapshot.merged_titles, snapshot.pristine)
        if self._lora.bank is not None:
            self._lora.bank.adopt(snapshot.tenants)
        self.attention_masks = {name: mask.clone() for name, mask in snapshot.attention_masks.items()}


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bits of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(network: nn.Module) -> dict[str, AnyTensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _differing(ours: Mapping[str, AnyTensor], theirs: Mapping[str, AnyTensor]) -> str | None:
    """The first tensor that only one side has, or whose shape or type differs."""
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
            return name
    return None
