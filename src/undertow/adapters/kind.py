"""What a kind of adapter is: the functions that each of them offers, and the records that pass between them.

A kind is a folder (`lora`, `control`, `image_prompt`) and a line in `kinds.KINDS`. From a file to a forward:

    identify -> read -> resolve -> tile -> rows -> ports
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.opened import OpenedAdapter
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.pictures import Hint, LatentGrid
from undertow.adapters.stacking.summary import AdapterSummary
from undertow.encoders.text_stack import TextStack
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.runner import Runner
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedModel:
    """What adapters are read for. capacity: slots for LoRA; `None` merges all. folder: of the model's files."""

    unet: UNet
    text: TextStack | None = None
    capacity: AdapterCapacity | None = None
    folder: Path | None = None


@runtime_checkable
class LoadedAdapter(Protocol):
    """A file in memory. content_hash: SHA-256 of what was read; equal hashes are equal adapters. title: what it is."""

    @property
    def content_hash(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def title(self) -> str: ...


class RowInput:
    """What one adapter does in one row of a batch: data, the same for every step and row in which it acts alike."""

    @property
    def key(self) -> Hashable:
        """Rows can share a forward only if the keys of their inputs are equal; `None` never keeps rows apart."""
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowAdapters:
    """What acts in one row of a batch."""

    inputs: tuple[RowInput, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward."""
        return tuple(key for one in self.inputs if (key := one.key) is not None)


@runtime_checkable
class BatchRow(Protocol):
    """What kinds read of a row of a batch; the engine's `Row` is one."""

    @property
    def unet(self) -> UNet: ...
    @property
    def latents(self) -> Tensor: ...
    @property
    def timestep(self) -> Tensor: ...
    @property
    def conditioning(self) -> Conditioning: ...
    @property
    def adapters(self) -> RowAdapters | None: ...


@runtime_checkable
class TiledAdapter(Protocol):
    """An adapter over the windows of the latents."""

    def rows(self, window: int, step: int, steps: int, *, conditional: bool) -> Sequence[RowInput]:
        """As it acts in a window at a step: nothing where it does not. conditional: on that side of guidance."""
        ...


@runtime_checkable
class ResolvedAdapter(Protocol):
    """A request's adapter, read for a model, with its pictures. note: what it is and how it acts, for the report."""

    @property
    def adapter(self) -> Adapter: ...
    @property
    def note(self) -> str: ...

    def tile(self, grid: LatentGrid) -> TiledAdapter:
        """The adapter over the windows of the latents. Errors: `InvalidInput` for pictures that do not fit them."""
        ...


Loaded = TypeVar("Loaded", bound=LoadedAdapter)
Resolved = TypeVar("Resolved", bound=ResolvedAdapter)
Input = TypeVar("Input", bound=RowInput)


class AdapterKind(ABC, Generic[Loaded, Resolved, Input]):
    """One kind of adapter for one model. loaded, resolved, inputs: the types of its records."""

    loaded: ClassVar[type]
    resolved: ClassVar[type]
    inputs: ClassVar[tuple[type[RowInput], ...]]

    def __init__(self, model: AdaptedModel):
        self.model = model

    @staticmethod
    @abstractmethod
    def identify(opened: OpenedAdapter) -> str | None:
        """What a file of this kind is, with its article ("a LoRA"); `None` for other files. Errors: `UnsupportedModel`
        for relatives that undertow does not run."""

    @abstractmethod
    def read(self, opened: OpenedAdapter) -> Loaded:
        """A file of this kind in memory. Errors: kinds of `CheckpointError`."""

    @abstractmethod
    def points(self, loaded: Loaded) -> Sequence[str]:
        """Names of the places where it can act, which `Adapter.blocks` scales."""

    @abstractmethod
    def resolve(
        self, adapter: Adapter, loaded: Loaded, *, hint: Hint | None = None, layers: LayerUpdates | None = None
    ) -> Resolved:
        """A request's adapter, with its pictures. hint: a control map as a tensor, in place of its image. layers: in
        place of its own, where a stack has decided so. Errors: `InvalidInput`, `AdapterMismatch`, `MissingComponent`.
        """

    @abstractmethod
    def ports(
        self,
        rows: Sequence[BatchRow],
        inputs: Sequence[Sequence[Input]],
        ports: Ports,
        runner: Runner,
        at_once: int | None,
    ) -> Ports:
        """`ports` with what this kind's inputs add for every row, beside what is in them already. runner: of the U-Net,
        and of networks that run beside it. at_once: rows of every forward of such a network; `None` runs all of one's
        together."""

    def summarize(self, adapter: Adapter, loaded: Loaded) -> AdapterSummary:
        """What a stack decides by."""
        acting = tuple(point for point in self.points(loaded) if adapter.factor(point) != 0)
        points = acting if any(adapter.scales) else ()
        return AdapterSummary(adapter=adapter, kind=loaded.title, size_bytes=loaded.size_bytes, points=points)

    def check(self, resolved: Sequence[Resolved]) -> None:
        """Errors: `InvalidInput` for more adapters of this kind than can act in one row."""

    def adapt_text(self, stack: TextStack, resolved: Sequence[Resolved], steps: int) -> TextStack:
        """The text encoders as they read under these adapters."""
        return stack

    def fits(self, inputs: Sequence[Sequence[Input]]) -> bool:
        """Whether rows with these inputs can share a forward."""
        return True

    def prepare(self, inputs: Sequence[Sequence[Input]]) -> None:
        """Writes weights that these rows share, before a forward."""

    def is_prepared(self, inputs: Sequence[Input]) -> bool:
        """Whether the weights are already those that a row needs."""
        return True

    def unmerge(self) -> None:
        """Puts the model's own weights back, bit for bit."""


def require_no(field: str, adapter: Adapter, kind: str) -> None:
    """Errors: `InvalidInput` for a field that this kind of adapter does not have."""
    if getattr(adapter, field) is not None:
        raise InvalidInput(f"{field} of {adapter.title}", str(getattr(adapter, field)), f"nothing for a {kind}")


def require_no_hint(adapter: Adapter, hint: Hint | None) -> None:
    """Errors: `InvalidInput` for a control hint that is given to another kind of adapter."""
    if hint is not None:
        raise InvalidInput(f"control hint of {adapter.title}", "given", "nothing: it is no control network")
