"""LoRA and its kin as a kind of adapter: which layers one changes for a request, and where its updates live: in slots,
or in the weights."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

from torch import Tensor

from undertow.adapters.adapter import Adapter, Placing
from undertow.adapters.files.opened import OpenedAdapter
from undertow.adapters.kind import AdaptedModel, AdapterKind, BatchRow, RowInput, require_no_hint
from undertow.adapters.lora.bank import Bank
from undertow.adapters.lora.leaves import read_lora_names
from undertow.adapters.lora.lora_file import Lora, lora_from
from undertow.adapters.lora.merge import MergedWeights, adapted_weights
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates, Update
from undertow.adapters.pictures import Hint, LatentGrid
from undertow.adapters.rules import require_lora
from undertow.adapters.stacking.summary import AdapterSummary
from undertow.encoders.clip import TextEncoder
from undertow.encoders.text_stack import Adaptation, TextStack
from undertow.errors import AdapterMismatch, InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.nn.quantized import quantized_layers
from undertow.unet.conditioning import Ports
from undertow.unet.leaves import layers_with_weights
from undertow.unet.runner import Runner

Residency = Literal["banked", "merged"]


@dataclass(frozen=True, kw_only=True)
class ResidencyChoice:
    """Where the updates of an adapter live, and why."""

    residency: Residency
    reason: str


def choose_residency(
    title: str,
    updates: Mapping[str, Update],
    bank: Bank | None,
    wanted: Placing,
    quantized: Collection[str] = (),
) -> ResidencyChoice:
    """Slots where they represent the updates exactly and have room, so that rows with other adapters can share the
    batch; otherwise merging, which works for every algorithm, but only rows with the same merged adapters share a
    batch. quantized: layers with quantized weights, into which nothing is merged: the sum would be rounded to their
    codes anew, which is another change than the adapter's.

    Errors: `InvalidInput` when slots were requested and are not possible, or merging is not.
    """
    if wanted == "merged":
        _require_plain(title, "it is asked for", updates, quantized)
        return ResidencyChoice(residency="merged", reason="added to the model's weights, as asked")
    objection = "the model was loaded without slots" if bank is None else bank.objection(updates)
    if objection is None:
        return ResidencyChoice(residency="banked", reason="in a slot beside the model's weights")
    if wanted == "banked":
        raise InvalidInput(
            f"residency of {title}",
            "'banked'",
            f"'merged' or 'auto', because {objection}",
            "or load the model with adapter_capacity=AdapterCapacity(slots=..., rank=..., sites=...) that has room",
        )
    _require_plain(title, objection, updates, quantized)
    why = "" if bank is None else f", because {objection}"
    return ResidencyChoice(residency="merged", reason=f"added to the model's weights while it draws{why}")


def _require_plain(title: str, why: str, updates: Mapping[str, Update], quantized: Collection[str]) -> None:
    layer = next((one for one in updates if one in quantized), None)
    if layer is not None:
        raise InvalidInput(
            f"residency of {title}",
            f"merged, because {why}",
            f"slots for LoRA, since {layer} has quantized weights: a sum would be rounded to them anew",
            "load the model with adapter_capacity=AdapterCapacity(...) (--adapter-slots) that has room, or with "
            "quantize='none'",
        )


TEXT_ONLY = ResidencyChoice(residency="merged", reason="added to the text encoders' weights while they read the prompt")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraInput(RowInput):
    """Updates that act in a row. residency: whether they are in slots or merged."""

    scaled: ScaledUpdates
    residency: Residency
    alike: ClassVar[int] = 1
    in_padding: ClassVar[bool] = False

    @property
    def key(self) -> tuple[object, ...] | None:
        """Rows of one forward share merged weights, while each row has slots of its own."""
        return (self.scaled.signature,) if self.residency == "merged" else None

    @property
    def shape(self) -> str | None:
        """Two in a row make the product of every row longer. One does not: it adds nothing to rows without any."""
        return "slot" if self.residency == "banked" else None


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedLora:
    """A request's LoRA for one model. layers: updates of the U-Net; `None` when only text encoders change."""

    adapter: Adapter
    lora: Lora
    decision: ResidencyChoice
    layers: LayerUpdates | None

    @property
    def loaded(self) -> Lora:
        """Its file in memory."""
        return self.lora

    def note(self, *, guided: bool) -> str:
        """Where its updates live, and why."""
        return self.decision.reason

    def tile(self, grid: LatentGrid) -> "ResolvedLora":
        """Itself, since it acts the same in every window."""
        return self

    def rows(self, window: int, step: int, steps: int, *, conditional: bool) -> tuple[LoraInput, ...]:
        """Its input to a row at a step; empty where it does not act."""
        gain = self.adapter.gain(step, steps)
        if self.layers is None or gain == 0:
            return ()
        return (LoraInput(scaled=ScaledUpdates(layers=self.layers, gain=gain), residency=self.decision.residency),)


class LoraKind(AdapterKind[Lora, ResolvedLora, LoraInput]):
    """LoRA and related algorithms. targets: the model's layers, by every name that files use for them. bank: the slots,
    if any were reserved. merged: what is merged into the U-Net's weights."""

    loaded, resolved, inputs = Lora, ResolvedLora, (LoraInput,)

    def __init__(self, model: AdaptedModel):
        super().__init__(model)
        self.bank = None if model.capacity is None else Bank(model.unet, model.capacity)
        self.merged = MergedWeights(model.unet)
        self.quantized = frozenset(quantized_layers(model.unet))
        self.targets = Targets.of(model.unet, () if model.text is None else model.text.encoders)

    @staticmethod
    def identify(opened: OpenedAdapter) -> str | None:
        found = read_lora_names(opened.names)
        return "a LoRA" if found.layers or found.unread else None

    def read(self, opened: OpenedAdapter) -> Lora:
        return lora_from(opened, self.targets)

    def points(self, loaded: Lora) -> Sequence[str]:
        return layers_with_weights(self.model.unet.config)

    def summarize(self, adapter: Adapter, loaded: Lora) -> AdapterSummary:
        layers = unet_updates(adapter, loaded)
        return AdapterSummary(adapter=adapter, kind=loaded.title, size_bytes=loaded.size_bytes, layers=layers)

    def resolve(
        self, adapter: Adapter, loaded: Lora, *, hint: Hint | None = None, layers: LayerUpdates | None = None
    ) -> ResolvedLora:
        """Errors: `AdapterMismatch` for biases that the model lacks; `InvalidInput` for fields that a LoRA does not
        have, and for a residency that is not possible."""
        require_lora(adapter, loaded.title)
        require_no_hint(adapter, hint)
        _check_biases(loaded, self.targets)
        own = unet_updates(adapter, loaded)
        if own is None:
            return ResolvedLora(adapter=adapter, lora=loaded, decision=TEXT_ONLY, layers=None)
        decision = choose_residency(adapter.title, loaded.updates["unet"], self.bank, adapter.residency, self.quantized)
        if layers is not None:
            wanted = "merged" if adapter.residency == "merged" else "auto"
            decision = choose_residency(adapter.title, layers.updates, self.bank, wanted, self.quantized)
        return ResolvedLora(adapter=adapter, lora=loaded, decision=decision, layers=own if layers is None else layers)

    def check(self, resolved: Sequence[ResolvedLora]) -> None:
        banked = [one for one in resolved if one.decision.residency == "banked"]
        if self.bank is not None and len(banked) > self.bank.capacity.per_row:
            raise InvalidInput(
                "adapters",
                f"{len(banked)} in slots",
                f"at most capacity.per_row = {self.bank.capacity.per_row} in one row",
                "load the model with a larger per_row, or give some residency='merged'",
            )

    def ports(
        self,
        rows: Sequence[BatchRow],
        inputs: Sequence[Sequence[LoraInput]],
        ports: Ports,
        runner: Runner,
        at_once: int | None,
    ) -> Ports:
        fixed = runner.capabilities.fixed_shapes
        return replace(ports, weights=self.weight_rows(inputs, fixed_shapes=fixed, apart=at_once is not None))

    def weight_rows(
        self, inputs: Sequence[Sequence[LoraInput]], *, fixed_shapes: bool = False, apart: bool = False
    ) -> WeightRows | None:
        """The weight port of rows, after the weights are those that all of them share. fixed_shapes, apart: as in
        `Bank.assign_slots`."""
        self.merged.set_active(_living(inputs[0], "merged"))
        if self.bank is None:
            return None
        banked = [_living(row, "banked") for row in inputs]
        return self.bank.assign_slots(banked, fixed_shapes=fixed_shapes, apart=apart)

    def changes_weights(self, inputs: Sequence[Sequence[LoraInput]]) -> bool:
        return bool(_living(inputs[0], "merged"))

    def prepare(self, inputs: Sequence[Sequence[LoraInput]]) -> None:
        self.weight_rows(inputs)

    def fits(self, inputs: Sequence[Sequence[LoraInput]]) -> bool:
        return self.bank is None or self.bank.fits([_living(row, "banked") for row in inputs])

    def is_prepared(self, inputs: Sequence[LoraInput]) -> bool:
        return tuple(scaled.signature for scaled in _living(inputs, "merged")) == self.merged.present

    def unmerge(self) -> None:
        self.merged.set_active(())

    def adapt_text(self, stack: TextStack, resolved: Sequence[ResolvedLora], steps: int) -> TextStack:
        with_text = [
            (one.lora, gain)
            for one in resolved
            if (gain := one.adapter.text_gain(steps)) and one.lora.updates.keys() - {"unet"}
        ]
        if not with_text:
            return stack

        @cache  # for all texts of a request
        def weights(encoder: TextEncoder) -> Mapping[str, Tensor]:
            scaled = [
                ScaledUpdates(
                    layers=layer_updates(lora, lora.path.stem, lora.updates[encoder.kind], {}),
                    gain=gain,
                )
                for lora, gain in with_text
                if encoder.kind in lora.updates
            ]
            return adapted_weights(encoder, scaled)

        key = tuple((lora.content_hash, gain) for lora, gain in with_text)
        return stack.adapted(Adaptation(key=key, weights=weights))


def unet_updates(adapter: Adapter, lora: Lora) -> LayerUpdates | None:
    """The U-Net's part of a file, with the adapter's `blocks` applied; `None` if the file only changes text
    encoders."""
    updates = lora.updates.get("unet", {})
    factors = {layer: factor for layer in updates if (factor := adapter.factor(layer)) != 1}
    return layer_updates(lora, adapter.title, updates, factors) if updates else None


def layer_updates(lora: Lora, title: str, updates: Mapping[str, Update], factors: Mapping[str, float]) -> LayerUpdates:
    """Some updates of a file, with a factor for each layer."""
    used = {layer: update for layer, update in updates.items() if factors.get(layer, 1.0) != 0}
    key = (lora.content_hash, tuple(sorted(factors.items())))
    return LayerUpdates(key=key, title=title, updates=used, factors=factors)


def _living(inputs: Sequence[LoraInput], residency: Residency) -> list[ScaledUpdates]:
    return [one.scaled for one in inputs if one.residency == residency]


def _check_biases(lora: Lora, targets: Targets) -> None:
    for network, updates in lora.updates.items():
        for layer, update in updates.items():
            if update.bias_change is not None and not targets.layers[network][layer].bias:
                raise AdapterMismatch(
                    lora.path, f"it changes the bias of {layer}, which has none here", "use it with its own base model"
                )
