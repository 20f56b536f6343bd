"""What a kind of adapter is: the functions that each of them offers, and the records that pass between them.

A kind is a folder (`lora`, `control`, `image_prompt`) and a line in `kinds.KINDS`. From a file to a forward:

    identify -> read -> resolve -> tile -> rows -> ports
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.library import LoadedAdapter
from undertow.adapters.files.opened import OpenedAdapter
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.pictures import Hint, LatentGrid
from undertow.adapters.stacking.summary import AdapterSummary
from undertow.encoders.text_stack import TextStack
from undertow.errors import InvalidInput
from undertow.memory.adapter_networks import AdapterNetworks
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.runner import Runner
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedModel:
    """What adapters are read for. capacity: slots for LoRA; `None` merges all. folder: of the model's files. networks:
    that adapters bring; use them inside `networks.using` alone."""

    unet: UNet
    text: TextStack | None = None
    capacity: AdapterCapacity | None = None
    folder: Path | None = None
    networks: AdapterNetworks = field(default_factory=AdapterNetworks)


class RowInput:
    """What one adapter contributes to one row of a batch. It holds data only. alike: how many of one `shape` a row may
    have and still compute what rows without any do. in_padding: whether the rows that fill a forward up repeat it."""

    alike: ClassVar[int] = 0
    in_padding: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        """Rows share a forward only if the keys of their inputs are equal. `None` does not restrict sharing."""
        return None

    @property
    def shape(self) -> Hashable:
        """Rows of forwards that are always of the same number of rows share one only if these are equal too: where a
        row is padded because of what is beside it, it may be rounded in another way."""
        return None

    @property
    def named_network(self) -> tuple[str, nn.Module] | None:
        """The network that runs beside the U-Net for it, by the name that probes know it by."""
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowAdapters:
    """All adapters that act in one row of a batch."""

    inputs: tuple[RowInput, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward."""
        return tuple(key for one in self.inputs if (key := one.key) is not None)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Those that run in the row's forward, beside the U-Net."""
        return tuple(network for _, network in self.named_networks)

    @property
    def padding(self) -> "RowAdapters":
        """What acts in a row that repeats this one to fill a forward up."""
        return RowAdapters(inputs=tuple(one for one in self.inputs if one.in_padding))

    @property
    def named_networks(self) -> tuple[tuple[str, nn.Module], ...]:
        """Those that run beside the U-Net, in order, one as often as it acts."""
        return tuple(found for one in self.inputs if (found := one.named_network) is not None)

    @property
    def shape(self) -> Hashable:
        """Equal for rows that pad nothing of each other."""
        counts = Counter((shape, one.alike) for one in self.inputs if (shape := one.shape) is not None)
        return frozenset((shape, count) for (shape, alike), count in counts.items() if count > alike)


@runtime_checkable
class BatchRow(Protocol):
    """What adapters read of a row of a batch; the engine's `Row` satisfies it."""

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
    """An adapter laid over the windows of the latents."""

    def rows(self, window: int, step: int, steps: int, *, conditional: bool) -> Sequence[RowInput]:
        """Its inputs to a row of this window at a step; empty where it does not act. conditional: the side of
        guidance."""
        ...


@runtime_checkable
class ResolvedAdapter(Protocol):
    """An adapter of a request, read for a model, with its pictures encoded. loaded: its file in memory."""

    @property
    def adapter(self) -> Adapter: ...
    @property
    def loaded(self) -> LoadedAdapter: ...

    def note(self, *, guided: bool) -> str:
        """What it is and how it acts, for the report. guided: whether the request has an unconditional side."""
        ...

    def tile(self, grid: LatentGrid) -> TiledAdapter:
        """Lays the adapter over the windows of the latents. Errors: `InvalidInput` for pictures of another shape."""
        ...


Loaded = TypeVar("Loaded", bound=LoadedAdapter)
Resolved = TypeVar("Resolved", bound=ResolvedAdapter)
Input = TypeVar("Input", bound=RowInput)


class AdapterKind(ABC, Generic[Loaded, Resolved, Input]):
    """One kind of adapter, with its state for one model. loaded, resolved, inputs: the types of its records."""

    loaded: ClassVar[type]
    resolved: ClassVar[type]
    inputs: ClassVar[tuple[type[RowInput], ...]]

    def __init__(self, model: AdaptedModel):
        self.model = model

    @staticmethod
    @abstractmethod
    def identify(opened: OpenedAdapter) -> str | None:
        """What the file is, with an article ("a LoRA"), if it is of this kind; `None` otherwise. Errors:
        `UnsupportedModel` for related formats that undertow does not run."""

    @staticmethod
    def reads_base(opened: OpenedAdapter) -> bool:
        """Whether reading a file of this kind reads the U-Net's weights, which are then in memory and its own."""
        return False

    @abstractmethod
    def read(self, opened: OpenedAdapter) -> Loaded:
        """Reads a file of this kind. Errors: kinds of `CheckpointError`."""

    @abstractmethod
    def points(self, loaded: Loaded) -> Sequence[str]:
        """Names of the places where it can act, for `Adapter.blocks`."""

    @abstractmethod
    def resolve(
        self, adapter: Adapter, loaded: Loaded, *, hint: Hint | None = None, layers: LayerUpdates | None = None
    ) -> Resolved:
        """Prepares an adapter of a request, with its pictures. hint: a control map as a tensor, in place of the
        adapter's image. layers: updates in place of the file's own, if a stack has changed them. Errors:
        `InvalidInput`, `AdapterMismatch`, `MissingComponent`."""

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
        """The facts by which a stack decides."""
        active = tuple(point for point in self.points(loaded) if adapter.factor(point) != 0)
        points = active if any(adapter.scales) else ()
        return AdapterSummary(adapter=adapter, kind=loaded.title, size_bytes=loaded.size_bytes, points=points)

    def check(self, resolved: Sequence[Resolved]) -> None:
        """Checks that all of these can act in one row. Errors: `InvalidInput`."""

    def adapt_text(self, stack: TextStack, resolved: Sequence[Resolved], steps: int) -> TextStack:
        """The text encoders with these adapters applied."""
        return stack

    def fits(self, inputs: Sequence[Sequence[Input]]) -> bool:
        """Whether rows with these inputs and equal keys can share a forward."""
        return True

    def changes_weights(self, inputs: Sequence[Sequence[Input]]) -> bool:
        """Whether rows with these inputs are computed with other weights than the model's own."""
        return False

    def prepare(self, inputs: Sequence[Sequence[Input]]) -> None:
        """Writes the weights that these rows need, before a forward."""

    def is_prepared(self, inputs: Sequence[Input]) -> bool:
        """Whether the weights are already those that a row needs."""
        return True

    def unmerge(self) -> None:
        """Restores the model's own weights, bit for bit."""


def require_no_hint(adapter: Adapter, hint: Hint | None) -> None:
    """Rejects a control hint, for kinds other than control networks. Errors: `InvalidInput`."""
    if hint is not None:
        raise InvalidInput(f"control hint of {adapter.title}", "given", "nothing: it is no control network")
