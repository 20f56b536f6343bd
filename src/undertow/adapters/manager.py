"""The adapters of a loaded model: read for it, resolved for requests, laid over the latents, and put into batches.

It knows no kind of adapter; all of them are in `kinds.KINDS`, and each step here is a loop over that table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.bundled import BundledAdapters
from undertow.adapters.files.library import LIBRARY_BYTES, Library, LoadedAdapter
from undertow.adapters.files.opened import open_adapter
from undertow.adapters.kind import (
    AdaptedModel,
    BatchRow,
    ResolvedAdapter,
    RowAdapters,
    RowInput,
    TiledAdapter,
)
from undertow.adapters.kinds import KINDS, AnyKind, identify
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.pictures import Hint, LatentGrid
from undertow.adapters.rules import require_blocks
from undertow.adapters.stack import AdapterStack
from undertow.adapters.stacking.decisions import decide, describe_interactions
from undertow.adapters.stacking.summary import AdapterSummary
from undertow.encoders.text_stack import TextStack
from undertow.errors import AdapterMismatch, InvalidInput, UnsupportedModel
from undertow.memory.adapter_networks import AdapterNetworks
from undertow.unet.conditioning import Ports
from undertow.unet.runner import EAGER, Runner
from undertow.unet.unet import UNet

Kind = TypeVar("Kind", bound=AnyKind)


@dataclass(frozen=True, kw_only=True, eq=False)
class Resolution:
    """The adapters of a request that act, and notes for the report on how they act together."""

    adapters: tuple[ResolvedAdapter, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledAdapters:
    """The adapters of a request, laid over the latents of one pass."""

    adapters: tuple[TiledAdapter, ...] = ()

    def with_more(self, other: "TiledAdapters") -> "TiledAdapters":
        """These adapters and others, over the same latents."""
        return TiledAdapters(adapters=self.adapters + other.adapters)

    def row(self, step: int, steps: int, *, window: int = 0, conditional: bool = True) -> RowAdapters:
        """What acts in a row of this window at a step. conditional: the side of guidance."""
        rows = (one.rows(window, step, steps, conditional=conditional) for one in self.adapters)
        return RowAdapters(inputs=tuple(each for row in rows for each in row))


class AdapterManager:
    """Adapters for one U-Net and its text encoders. capacity: slots for LoRA; `None` merges all. library_bytes:
    memory for files that are not in use. folder: of the model, which may hold an image encoder, and adapters of its own
    in `adapters`. kinds: those that there are.

    Until the first adapter comes, or slots are reserved, there is nothing to apply and requests pass it by. Errors:
    `InvalidInput`."""

    def __init__(
        self,
        unet: UNet,
        text: TextStack | None,
        *,
        capacity: AdapterCapacity | None = None,
        library_bytes: int = LIBRARY_BYTES,
        folder: Path | None = None,
        kinds: Sequence[type[AnyKind]] = KINDS,
    ):
        self._model = AdaptedModel(unet=unet, text=text, capacity=capacity, folder=folder)
        self._types = tuple(kinds)
        self._kinds: tuple[AnyKind, ...] | None = None
        self.bundled = BundledAdapters(folder)
        self.library: Library[LoadedAdapter] = Library(self._open, library_bytes)
        if capacity is not None:
            self._kinds = self.kinds  # slots are there before the first forward

    @property
    def networks(self) -> AdapterNetworks:
        """ControlNets and the like, which may leave memory while they do not work."""
        return self._model.networks

    @property
    def unet(self) -> UNet:
        return self._model.unet

    @property
    def capacity(self) -> AdapterCapacity | None:
        """Room for LoRA in slots; `None` where they are merged."""
        return self._model.capacity

    @property
    def slots(self) -> int | None:
        """Slots for LoRA; `None` where they are merged."""
        return None if self.capacity is None else self.capacity.slots

    @property
    def kinds(self) -> tuple[AnyKind, ...]:
        """The kinds of adapters, with their state for this model; made when first asked for."""
        if self._kinds is None:
            self._kinds = tuple(kind(self._model) for kind in self._types)
        return self._kinds

    def act_in(self, rows: Sequence[BatchRow]) -> bool:
        """Whether a forward of these rows has anything to do with adapters, maybe only with slots that are empty."""
        used = self._kinds is not None or any(row.adapters is not None for row in rows)
        return used and rows[0].unet is self._model.unet

    def kind(self, wanted: type[Kind]) -> Kind:
        """One of the kinds, with its state for this model."""
        return next(kind for kind in self.kinds if isinstance(kind, wanted))

    # Files

    def read(self, source: str | Path) -> LoadedAdapter:
        """The contents of an adapter file: at a path, on the Hub, or bundled with the model under this name. Errors:
        kinds of `CheckpointError`."""
        return self.library.get(self.bundled.locate(source))

    def _open(self, source: str | Path) -> LoadedAdapter:
        with open_adapter(source) as opened:
            kind = self.kind(identify(opened, self._types)[0])
            if not kind.reads_base(opened):
                return kind.read(opened)
            self.unmerge()
            with self.networks.using(self.unet):
                return kind.read(opened)

    def summarize(self, adapters: Sequence[Adapter]) -> tuple[AdapterSummary, ...]:
        """A summary of every adapter; for those that this model cannot use, with the reason. Errors: kinds of
        `CheckpointError`, for missing and damaged files."""
        found = []
        for adapter in adapters:
            try:
                loaded = self.read(adapter.source)
                found.append(self._kind_of(loaded).summarize(adapter, loaded))
            except (AdapterMismatch, UnsupportedModel) as err:
                found.append(AdapterSummary(adapter=adapter, kind="unusable", problem=str(err)))
        return tuple(found)

    # Requests

    def resolve(
        self, adapters: Sequence[Adapter] | AdapterStack, *, beside: Sequence[ResolvedAdapter] = ()
    ) -> Resolution:
        """Resolves the adapters of a request, as `resolve_each` does. A stack decides which of its adapters act; for
        others the notes say where their order matters. Errors: those of `resolve_each`, for adapters that act."""
        if not adapters:
            return Resolution(adapters=(), notes=())
        if not isinstance(adapters, AdapterStack):
            resolved = self.resolve_each(adapters, beside=beside)
            return Resolution(adapters=resolved, notes=describe_interactions(self.summarize(adapters)))
        decided = decide(adapters, self.summarize(tuple(adapters)))
        kept = [one for one in adapters if one.title in decided.kept]
        return Resolution(adapters=self.resolve_each(kept, beside=beside, layers=decided.layers), notes=decided.notes)

    def resolve_each(
        self,
        adapters: Sequence[Adapter],
        *,
        beside: Sequence[ResolvedAdapter] = (),
        hints: Mapping[str, Hint] | None = None,
        layers: Mapping[str, LayerUpdates] | None = None,
    ) -> tuple[ResolvedAdapter, ...]:
        """Reads all adapters of a request and encodes their pictures, before the first step. beside: further adapters
        that act in the same rows. hints: control maps as tensors, by adapter name. layers: updates in place of a file's
        own, by adapter name.

        Errors: kinds of `CheckpointError` for files that do not fit the model; `InvalidInput` for duplicate names, more
        adapters in a row than there is room for, patterns that match no layer, and missing or unusable pictures.
        """
        titles = [*(one.adapter.title for one in beside), *(adapter.title for adapter in adapters)]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise InvalidInput(
                "adapters", f"{', '.join(twice)} twice", "a unique name for each", "give one of them another `name`"
            )
        hints, layers = {} if hints is None else hints, {} if layers is None else layers
        resolved = []
        for adapter in adapters:
            loaded, title = self.read(adapter.source), adapter.title
            kind = self._kind_of(loaded)
            resolved.append(kind.resolve(adapter, loaded, hint=hints.get(title), layers=layers.get(title)))
            require_blocks(adapter, kind.points(loaded))
        for kind in self.kinds:
            kind.check(_of(kind.resolved, (*beside, *resolved)))
        return tuple(resolved)

    def tile(self, resolved: Sequence[ResolvedAdapter], grid: LatentGrid) -> TiledAdapters:
        """Lays the adapters over the latents. Errors: `InvalidInput` for pictures of another shape."""
        return TiledAdapters(adapters=tuple(one.tile(grid) for one in resolved))

    def text(self, stack: TextStack, resolved: Sequence[ResolvedAdapter], steps: int) -> TextStack:
        """The text encoders with these adapters applied."""
        if not resolved:
            return stack
        for kind in self.kinds:
            stack = kind.adapt_text(stack, _of(kind.resolved, resolved), steps)
        return stack

    # Batches

    def fits(self, rows: Sequence[BatchRow]) -> bool:
        """Whether rows with equal keys can share a forward: whether there are slots for all their adapters."""
        if not self.act_in(rows):
            return True
        return all(kind.fits(_inputs(kind, _adapters(rows))) for kind in self.kinds)

    def is_prepared(self, row: BatchRow) -> bool:
        """Whether the weights are already those that a row needs."""
        if not self.act_in([row]):
            return True
        return all(kind.is_prepared(_inputs(kind, _adapters([row]))[0]) for kind in self.kinds)

    def prepare_weights(self, rows: Sequence[RowAdapters]) -> None:
        """Writes the weights that these rows share; `ports` does so too."""
        for kind in self.kinds:
            kind.prepare(_inputs(kind, rows))

    def ports(
        self,
        rows: Sequence[BatchRow],
        runner: Runner = EAGER,
        at_once: int | None = None,
        given: Ports | None = None,
    ) -> Ports:
        """What the adapters of rows with equal keys add to their forward, each in its own row. runner: of the U-Net,
        and of networks that run beside it. at_once: rows of every forward of such a network; `None` runs all of one's
        together. given: what is in the ports already; ControlNets compute in as many parts as it says."""
        ports = Ports() if given is None else given
        if not self.act_in(rows):
            return ports
        for kind in self.kinds:
            ports = kind.ports(rows, _inputs(kind, _adapters(rows)), ports, runner, at_once)
        return ports

    def runner_for(self, rows: Sequence[BatchRow], runner: Runner) -> Runner:
        """What runs rows with equal keys: `runner`, or eagerly where LoRA are merged into weights of which it has a
        copy, as OpenVINO and frozen graphs do."""
        if runner.capabilities.merging or not self.act_in(rows):
            return runner
        changed = any(kind.changes_weights(_inputs(kind, _adapters(rows))) for kind in self.kinds)
        return EAGER if changed else runner

    def unmerge(self) -> None:
        """Restores the U-Net's own weights, bit for bit."""
        if self._kinds is not None:
            for kind in self._kinds:
                kind.unmerge()

    def _kind_of(self, loaded: LoadedAdapter) -> AnyKind:
        return next(kind for kind in self.kinds if isinstance(loaded, kind.loaded))


def _adapters(rows: Sequence[BatchRow]) -> list[RowAdapters]:
    return [RowAdapters() if row.adapters is None else row.adapters for row in rows]


def _inputs(kind: AnyKind, rows: Sequence[RowAdapters]) -> list[list[RowInput]]:
    return [_of(kind.inputs, row.inputs) for row in rows]


def _of(types: type | tuple[type, ...], records: Sequence[Any]) -> list[Any]:
    """The records of these types."""
    return [one for one in records if isinstance(one, types)]
