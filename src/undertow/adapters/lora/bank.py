"""Banked residency: low-rank changes of many adapters side by side in slots, of which every row names its own.

The idea of S-LoRA (arXiv:2311.03285) and Punica (arXiv:2310.18547), for U-Nets. Filling a slot is a copy in place: it
neither recompiles nor touches the base weights.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import torch
from torch import nn

from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates, Update
from undertow.doors import checked_record
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Conv2d, Linear, Run, Slots, WeightRows


@checked_record
@dataclass(frozen=True, kw_only=True)
class AdapterCapacity:
    """Room for adapters in slots, reserved once when a model is loaded.

    slots: how many adapters are held at a time; more take turns. rank: the largest that fits. per_row: how many
    adapters one row can use. sites: patterns of the layers that get slots. On accelerators and in compiled networks
    padding is computed too: an adapter of rank 4 takes as long as one of `rank`. Errors: `InvalidInput`.
    """

    slots: int = 8
    rank: int = 16
    per_row: int = 2
    sites: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        for name in ("slots", "rank", "per_row"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"capacity.{name}", getattr(self, name), "at least 1")
        if self.per_row > self.slots:
            raise InvalidInput("capacity.per_row", self.per_row, f"at most slots = {self.slots}")


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """The adapter that occupies a slot. ranks: of its updates, by layer."""

    key: Hashable
    title: str
    slot: int
    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)


class Bank:
    """The slots of a network. changed_at: when slots were last written. Errors: `InvalidInput` for sites that are not
    there."""

    def __init__(self, network: nn.Module, capacity: AdapterCapacity):
        self.capacity = capacity
        self.writes = 0
        self.changed_at = datetime.now(UTC)
        self._sites = _allocated(network, capacity)
        self._tenants: OrderedDict[Hashable, Tenant] = OrderedDict()

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the layers with slots."""
        return tuple(self._sites)

    @property
    def size_bytes(self) -> int:
        """Memory of the slots."""
        return sum(slots.down.nbytes + slots.up.nbytes for slots in self._sites.values())

    @property
    def tenants(self) -> tuple["Tenant", ...]:
        """The adapters in slots, least recently used first."""
        return tuple(self._tenants.values())

    def adopt(self, tenants: Sequence["Tenant"]) -> None:
        """Records which adapters occupy the slots, after the slots themselves were restored from a snapshot."""
        self._tenants = OrderedDict((tenant.key, tenant) for tenant in tenants)
        for tenant in tenants:
            self._rank(tenant)
        self.changed_at = datetime.now(UTC)

    def objection(self, updates: Mapping[str, Update]) -> str | None:
        """Why these updates cannot go into slots; `None` if they can."""
        for layer, update in updates.items():
            rank = update.factored_rank
            if rank is None:
                return f"{update.kind} at {layer} is no low-rank change"
            if layer not in self._sites:
                return f"{layer} has no slots: capacity.sites is {', '.join(self.capacity.sites)}"
            if rank > self.capacity.rank:
                return f"rank {rank} at {layer} is over capacity.rank = {self.capacity.rank}"
        return None

    def fits(self, rows: Sequence[Sequence[ScaledUpdates]]) -> bool:
        """Whether there are enough slots for all updates that these rows use."""
        return len({scaled.layers.key for row in rows for scaled in row}) <= self.capacity.slots

    def assign_slots(
        self, rows: Sequence[Sequence[ScaledUpdates]], *, fixed_shapes: bool = False, apart: bool = False
    ) -> WeightRows | None:
        """The weight port of a batch, whose changes are put into slots first; `None` when no row has any.

        Entries that a row does not use have a gain of 0 and name the last slot, which stays empty: 0 times another
        adapter's Inf or NaN would be NaN. Those that were not used for longest make room. fixed_shapes: every row has
        `capacity.per_row` entries, so that one compiled graph fits all batches; else as many as the fullest row. apart:
        what a row computes does not depend on those beside it.
        """
        entries = max((len(row) for row in rows), default=0)
        if entries == 0:
            return None
        needed = {scaled.layers.key: scaled.layers for row in rows for scaled in row}
        for key in needed:
            if key in self._tenants:
                self._tenants.move_to_end(key)
        for layers in needed.values():
            self._settle(layers, needed)
        width = self.capacity.per_row if fixed_shapes else entries
        slots, gains = torch.full((len(rows), width), self.capacity.slots), torch.zeros(len(rows), width)
        for index, row in enumerate(rows):
            for entry, scaled in enumerate(row):
                slots[index, entry] = self._tenants[scaled.layers.key].slot
                gains[index, entry] = scaled.gain
        device = next(iter(self._sites.values())).down.device
        by_runs = device.type == "cpu" and not fixed_shapes
        runs = self._runs(rows, entries, apart=apart) if by_runs else None
        return WeightRows(slots=slots.to(device), gains=gains.to(device), runs=runs)

    def clear(self) -> None:
        """Empties all slots."""
        self._tenants.clear()
        self.changed_at = datetime.now(UTC)
        for slots in self._sites.values():
            slots.down.zero_()
            slots.up.zero_()
            slots.ranks = [0] * len(slots.ranks)

    def _runs(self, rows: Sequence[Sequence[ScaledUpdates]], entries: int, *, apart: bool) -> tuple[Run, ...]:
        """Entry by entry, so that a row's updates are added in its own order."""
        found: list[Run] = []
        for entry in range(entries):
            for index, row in enumerate(rows):
                if entry >= len(row):
                    continue
                slot, gain = self._tenants[row[entry].layers.key].slot, row[entry].gain
                last = found[-1] if found else None
                if last is not None and not apart and (last.stop, last.slot, last.gain) == (index, slot, gain):
                    found[-1] = replace(last, stop=index + 1)
                else:
                    found.append(Run(start=index, stop=index + 1, slot=slot, gain=gain))
        return tuple(found)

    def _rank(self, tenant: Tenant) -> None:
        """Tells every layer the rank of an update in its slot."""
        for layer, slots in self._sites.items():
            slots.ranks[tenant.slot] = tenant.ranks.get(layer, 0)

    def _settle(self, layers: LayerUpdates, needed: Mapping[Hashable, LayerUpdates]) -> None:
        if layers.key in self._tenants:
            return
        taken = {tenant.slot for tenant in self._tenants.values()}
        free = next((slot for slot in range(self.capacity.slots) if slot not in taken), None)
        if free is None:
            oldest = next(key for key in self._tenants if key not in needed)
            free = self._tenants.pop(oldest).slot
        for layer, slots in self._sites.items():
            _write(slots, free, layers.updates.get(layer), layers.gain(layer, 1.0))
        ranks = {layer: update.factored_rank or 0 for layer, update in layers.updates.items()}
        tenant = Tenant(key=layers.key, title=layers.title, slot=free, ranks=ranks)
        self._tenants[layers.key] = tenant
        self._rank(tenant)
        self.writes += 1
        self.changed_at = datetime.now(UTC)


@torch.no_grad()
def _write(slots: Slots, slot: int, update: Update | None, gain: float) -> None:
    factors = None if update is None else update.on(slots.down.device).factors()
    slots.down[slot].zero_()
    slots.up[slot].zero_()
    if factors is not None:
        rank = len(factors.down)
        slots.down[slot, :rank].copy_(factors.down)
        slots.up[slot, :, :rank].copy_(gain * factors.up)


def _allocated(network: nn.Module, capacity: AdapterCapacity) -> dict[str, Slots]:
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Linear | Conv2d)}
    for pattern in capacity.sites:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InvalidInput("capacity.sites", repr(pattern), "a pattern of layer names", f"e.g. {min(layers)}, or *")
    found: dict[str, Slots] = {}
    for name, layer in layers.items():
        if any(fnmatchcase(name, pattern) for pattern in capacity.sites):
            layer.allocate_slots(capacity.slots + 1, capacity.rank)  # and one that stays empty
            assert layer.slots is not None
            found[name] = layer.slots
    return found
