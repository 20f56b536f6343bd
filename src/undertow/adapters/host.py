"""What a loaded model is to adapters: where they are read for, where their changes live, and who uses which."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache

from torch import Tensor

from undertow.adapters.active import Active, Changes
from undertow.adapters.adapter import Adapter
from undertow.adapters.library import LIBRARY_BYTES, Library
from undertow.adapters.lora.bank import AdapterCapacity, Bank
from undertow.adapters.lora.file import Lora, read_lora
from undertow.adapters.lora.merge import MergedWeights
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.text import adapted_weights
from undertow.adapters.lora.updates import Update
from undertow.adapters.residency import Decision, choose_residency
from undertow.encoders.clip import TextEncoder
from undertow.encoders.text_stack import Adaptation, TextStack
from undertow.errors import AdapterMismatch, InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.unet.unet import UNet

TEXT_ONLY = Decision(residency="merged", reason="into text encoders alone, and only while they read")


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """A request's adapter, read and placed. changes: of the U-Net; `None` for one that only changes text encoders."""

    adapter: Adapter
    lora: Lora
    decision: Decision
    changes: Changes | None

    def active(self, step: int, steps: int) -> Active | None:
        """As it acts in a step; `None` when it does not."""
        gain = self.adapter.gain(step, steps)
        return None if self.changes is None or gain == 0 else Active(changes=self.changes, gain=gain)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowAdapters:
    """What acts in one row of a batch. host: of the row's U-Net, also for rows in which nothing acts."""

    host: "AdapterHost"
    banked: tuple[Active, ...] = ()
    merged: tuple[Active, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward: those with equal weights."""
        return tuple(active.signature for active in self.merged)


class AdapterHost:
    """Adapters for one U-Net and its text encoders. capacity: slots for banked ones; `None` merges all. fixed: the
    U-Net is compiled, see `Bank`. library_bytes: memory for files that are not in use. Errors: `InvalidInput`."""

    def __init__(
        self,
        unet: UNet,
        text: TextStack | None,
        *,
        capacity: AdapterCapacity | None = None,
        fixed: bool = False,
        library_bytes: int = LIBRARY_BYTES,
    ):
        self.bank = None if capacity is None else Bank(unet, capacity, fixed=fixed)
        self.merged = MergedWeights(unet)
        self.targets = Targets.of(unet, () if text is None else text.encoders)
        self.library = Library(lambda source: read_lora(source, self.targets), library_bytes)

    def bind(self, adapters: Sequence[Adapter]) -> tuple[Bound, ...]:
        """The adapters of a request, each read and placed, before any step.

        Errors: `CheckpointError` and its kinds for files that do not fit the model; `InvalidInput` for two of one name,
        more in a row than there is room for, and patterns that fit no layer.
        """
        titles = [adapter.title for adapter in adapters]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise InvalidInput("adapters", f"{', '.join(twice)} twice", "a name for each", "give one another `name`")
        bound = tuple(self._bind(adapter) for adapter in adapters)
        banked = [one for one in bound if one.decision.residency == "banked"]
        if self.bank is not None and len(banked) > self.bank.capacity.per_row:
            raise InvalidInput(
                "adapters",
                f"{len(banked)} in slots",
                f"at most capacity.per_row = {self.bank.capacity.per_row} in one row",
                "load the model with a larger per_row, or give some residency='merged'",
            )
        return bound

    def row(self, bound: Sequence[Bound], step: int, steps: int) -> RowAdapters:
        """What acts in a row at a step."""
        banked: list[Active] = []
        merged: list[Active] = []
        for one in bound:
            active = one.active(step, steps)
            if active is not None:
                (banked if one.decision.residency == "banked" else merged).append(active)
        return RowAdapters(host=self, banked=tuple(banked), merged=tuple(merged))

    def arrange(self, rows: Sequence[RowAdapters]) -> WeightRows | None:
        """Makes the U-Net's weights those that all these rows share, and gives their weight port."""
        self.merged.become(rows[0].merged)
        return None if self.bank is None else self.bank.bind([row.banked for row in rows])

    def fits(self, rows: Sequence[RowAdapters]) -> bool:
        """Whether these rows can share a forward."""
        return self.bank is None or self.bank.fits([row.banked for row in rows])

    def rest(self) -> None:
        """The U-Net's own weights, bit for bit."""
        self.merged.become(())

    def text(self, stack: TextStack, bound: Sequence[Bound], steps: int) -> TextStack:
        """The stack as it reads under these adapters."""
        acting = [
            (one.lora, gain)
            for one in bound
            if (gain := one.adapter.text_gain(steps)) and one.lora.updates.keys() - {"unet"}
        ]
        if not acting:
            return stack

        @cache  # for all texts of a request
        def weights(encoder: TextEncoder) -> Mapping[str, Tensor]:
            changes = [
                Active(changes=_changes(lora, lora.path.stem, lora.updates[encoder.kind], {}), gain=gain)
                for lora, gain in acting
                if encoder.kind in lora.updates
            ]
            return adapted_weights(encoder, changes)

        key = tuple((lora.content_hash, gain) for lora, gain in acting)
        return stack.adapted(Adaptation(key=key, weights=weights))

    def _bind(self, adapter: Adapter) -> Bound:
        lora = self.library.get(adapter.source)
        updates = lora.updates.get("unet", {})
        self._check_blocks(adapter)
        self._check_biases(lora)
        factors = {layer: factor for layer in updates if (factor := adapter.factor(layer)) != 1}
        if not updates:
            return Bound(adapter=adapter, lora=lora, decision=TEXT_ONLY, changes=None)
        decision = choose_residency(adapter.title, updates, self.bank, adapter.residency)
        changes = _changes(lora, adapter.title, updates, factors)
        return Bound(adapter=adapter, lora=lora, decision=decision, changes=changes)

    def _check_biases(self, lora: Lora) -> None:
        for network, updates in lora.updates.items():
            for layer, update in updates.items():
                if update.bias_change is not None and not self.targets.layers[network][layer].bias:
                    raise AdapterMismatch(
                        lora.path,
                        f"it changes the bias of {layer}, which has none here",
                        "use it with its own base model",
                    )

    def _check_blocks(self, adapter: Adapter) -> None:
        layers = self.targets.layers["unet"]
        for pattern in adapter.blocks or {}:
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                near = get_close_matches(pattern, layers, 3)
                raise InvalidInput(
                    f"blocks of {adapter.title}",
                    repr(pattern),
                    "a pattern of layer names",
                    f"e.g. {', '.join(near) if near else 'up_blocks.*'}",
                )


def _changes(lora: Lora, title: str, updates: Mapping[str, Update], factors: Mapping[str, float]) -> Changes:
    used = {layer: update for layer, update in updates.items() if factors.get(layer, 1.0) != 0}
    key = (lora.content_hash, tuple(sorted(factors.items())))
    return Changes(key=key, title=title, updates=used, factors=factors)
