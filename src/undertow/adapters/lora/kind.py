"""A LoRA of a request: what of it changes which layers, and where its updates live: in slots, or in the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from undertow.adapters.adapter import Adapter, Placing
from undertow.adapters.control.kind import require_no
from undertow.adapters.lora.bank import Bank
from undertow.adapters.lora.lora_file import Lora
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates, Update
from undertow.errors import AdapterMismatch, InvalidInput

Residency = Literal["banked", "merged"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """residency: where. reason: why."""

    residency: Residency
    reason: str


def choose_residency(title: str, updates: Mapping[str, Update], bank: Bank | None, wanted: Placing) -> Decision:
    """Banked where that is exact and there is room, so that rows with other adapters share its batches; else merged,
    which suits every kind, but only rows with the very same merged adapters share a batch.

    Errors: `InvalidInput` when "banked" was asked for and cannot be.
    """
    if wanted == "merged":
        return Decision(residency="merged", reason="as asked")
    objection = "the model was loaded without slots" if bank is None else bank.objection(updates)
    if objection is None:
        return Decision(residency="banked", reason="low-rank changes that fit the slots: unlike rows share a batch")
    if wanted == "banked":
        raise InvalidInput(
            f"residency of {title}",
            "'banked'",
            f"'merged' or 'auto', because {objection}",
            "or load the model with adapter_capacity=AdapterCapacity(slots=..., rank=..., sites=...) that has room",
        )
    return Decision(residency="merged", reason=objection)


KIND = "LoRA"
TEXT_ONLY = Decision(residency="merged", reason="into text encoders alone, and only while they read")


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedLora:
    """A request's LoRA for one model. layers: updates of the U-Net; `None` when only text encoders change."""

    adapter: Adapter
    lora: Lora
    decision: Decision
    layers: LayerUpdates | None

    @classmethod
    def read(cls, adapter: Adapter, lora: Lora, targets: Targets, bank: Bank | None) -> "ResolvedLora":
        """Errors: `AdapterMismatch` for biases that the model lacks; `InvalidInput` for what no LoRA has, and for a
        residency that cannot be."""
        for field in ("image", "mask", "encoder"):
            require_no(field, adapter, KIND)
        _check_biases(lora, targets)
        found = unet_updates(adapter, lora)
        if found is None:
            return cls(adapter=adapter, lora=lora, decision=TEXT_ONLY, layers=None)
        decision = choose_residency(adapter.title, lora.updates["unet"], bank, adapter.residency)
        return cls(adapter=adapter, lora=lora, decision=decision, layers=found)

    @property
    def note(self) -> str:
        """Where it lives and why."""
        return f"{self.decision.residency}, {self.decision.reason}"

    def scaled(self, step: int, steps: int) -> ScaledUpdates | None:
        """As it acts in a step; `None` when it does not."""
        gain = self.adapter.gain(step, steps)
        return None if self.layers is None or gain == 0 else ScaledUpdates(layers=self.layers, gain=gain)

    def revised(self, layers: LayerUpdates, bank: Bank | None) -> "ResolvedLora":
        """With other changes of the U-Net in place of its own, where they have room."""
        wanted = "merged" if self.adapter.residency == "merged" else "auto"
        decision = choose_residency(self.adapter.title, layers.updates, bank, wanted)
        return replace(self, layers=layers, decision=decision)


def unet_updates(adapter: Adapter, lora: Lora) -> LayerUpdates | None:
    """What a file changes of the U-Net, by the adapter's `blocks`; `None` for one that only changes text encoders."""
    updates = lora.updates.get("unet", {})
    factors = {layer: factor for layer in updates if (factor := adapter.factor(layer)) != 1}
    return layer_updates(lora, adapter.title, updates, factors) if updates else None


def layer_updates(lora: Lora, title: str, updates: Mapping[str, Update], factors: Mapping[str, float]) -> LayerUpdates:
    """A file's changes of some layers, by these factors."""
    used = {layer: update for layer, update in updates.items() if factors.get(layer, 1.0) != 0}
    key = (lora.content_hash, tuple(sorted(factors.items())))
    return LayerUpdates(key=key, title=title, updates=used, factors=factors)


def _check_biases(lora: Lora, targets: Targets) -> None:
    for network, updates in lora.updates.items():
        for layer, update in updates.items():
            if update.bias_change is not None and not targets.layers[network][layer].bias:
                raise AdapterMismatch(
                    lora.path, f"it changes the bias of {layer}, which has none here", "use it with its own base model"
                )
