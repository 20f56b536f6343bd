"""What a loaded model is to adapters: where they are read for, where their changes live, and who uses which."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from torch import Tensor

from undertow.adapters.acting import Beside
from undertow.adapters.active import Active
from undertow.adapters.adapter import Adapter
from undertow.adapters.bound_control import BoundControl, PlacedControl
from undertow.adapters.bound_lora import BoundLora, changes
from undertow.adapters.bound_picture import BoundPicture, PlacedPicture
from undertow.adapters.conflicts import Reading
from undertow.adapters.control.compiled import compile_control
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.file import ControlFile, read_control
from undertow.adapters.decisions import decide, notes
from undertow.adapters.image_prompt.file import read_image_prompt
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.kinds import adapter_kind
from undertow.adapters.library import LIBRARY_BYTES, Library
from undertow.adapters.lora.bank import AdapterCapacity, Bank
from undertow.adapters.lora.file import Lora, read_lora
from undertow.adapters.lora.merge import MergedWeights
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.text import adapted_weights
from undertow.adapters.own import OwnAdapters
from undertow.adapters.pictures import Canvas, Hint
from undertow.adapters.readings import read_all
from undertow.adapters.stack import AdapterStack
from undertow.adapters.vision import Encoders
from undertow.encoders.clip import TextEncoder
from undertow.encoders.text_stack import Adaptation, TextStack
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.unet.unet import UNet

Bound = BoundLora | BoundControl | BoundPicture
"""A request's adapter, read for a model, with its pictures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resolved:
    """A request's adapters that act, and what a report tells about them beside each other."""

    bound: tuple[Bound, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowAdapters:
    """What acts in one row of a batch. host: of the row's U-Net, also for rows in which nothing acts. banked, merged:
    changes of weights. beside: what acts beside the weights."""

    host: "AdapterHost"
    banked: tuple[Active, ...] = ()
    merged: tuple[Active, ...] = ()
    beside: tuple[Beside, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward: those with equal weights."""
        return tuple(active.signature for active in self.merged)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """A request's adapters over one canvas."""

    host: "AdapterHost"
    loras: tuple[BoundLora, ...] = ()
    controls: tuple[PlacedControl, ...] = ()
    pictures: tuple[PlacedPicture, ...] = ()

    def with_more(self, other: "Placed") -> "Placed":
        """These and others, over the same canvas."""
        return Placed(
            host=self.host,
            loras=self.loras + other.loras,
            controls=self.controls + other.controls,
            pictures=self.pictures + other.pictures,
        )

    def row(self, step: int, steps: int, *, window: int = 0, wanted: bool = True) -> RowAdapters:
        """What acts in a window of the canvas at a step. wanted: on guidance's wanted side, or for the other."""
        banked: list[Active] = []
        merged: list[Active] = []
        for one in self.loras:
            active = one.active(step, steps)
            if active is not None:
                (banked if one.decision.residency == "banked" else merged).append(active)
        controls = [placed.row(window, step, steps, wanted=wanted) for placed in self.controls]
        pictures = [row for placed in self.pictures for row in placed.rows(window, step, steps, wanted=wanted)]
        beside = (*(row for row in controls if row is not None), *pictures)
        return RowAdapters(host=self.host, banked=tuple(banked), merged=tuple(merged), beside=beside)


class AdapterHost:
    """Adapters for one U-Net and its text encoders. capacity: slots for banked LoRA; `None` merges all. fixed: the
    U-Net is compiled, see `Bank`, and ControlNets are too. library_bytes: memory for files that are not in use. folder:
    of the model, which may hold an image encoder, and adapters of its own in `adapters`. Errors: `InvalidInput`."""

    def __init__(
        self,
        unet: UNet,
        text: TextStack | None,
        *,
        capacity: AdapterCapacity | None = None,
        fixed: bool = False,
        library_bytes: int = LIBRARY_BYTES,
        folder: Path | None = None,
    ):
        self.unet = unet
        self.fixed = fixed
        self.own = OwnAdapters(folder)
        self.bank = None if capacity is None else Bank(unet, capacity, fixed=fixed)
        self.merged = MergedWeights(unet)
        self.targets = Targets.of(unet, () if text is None else text.encoders)
        self.library = Library(self._read, library_bytes)
        self.encoders = Encoders(unet.device, folder)

    def bind(
        self, adapters: Sequence[Adapter], *, beside: Sequence[Bound] = (), hints: Mapping[str, Hint] | None = None
    ) -> tuple[Bound, ...]:
        """The adapters of a request, each read, with its pictures, before any step. beside: others that act with them.
        hints: control maps as tensors, by name.

        Errors: `CheckpointError` and its kinds for files that do not fit the model; `InvalidInput` for two of one name,
        more in a row than there is room for, patterns that fit no layer, and pictures missing or of no use.
        """
        titles = [*(one.adapter.title for one in beside), *(adapter.title for adapter in adapters)]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise InvalidInput("adapters", f"{', '.join(twice)} twice", "a name for each", "give one another `name`")
        hints = {} if hints is None else hints
        bound = tuple(self._bind(adapter, hints.get(adapter.title)) for adapter in adapters)
        loras = [one for one in (*beside, *bound) if isinstance(one, BoundLora)]
        banked = [one for one in loras if one.decision.residency == "banked"]
        if self.bank is not None and len(banked) > self.bank.capacity.per_row:
            raise InvalidInput(
                "adapters",
                f"{len(banked)} in slots",
                f"at most capacity.per_row = {self.bank.capacity.per_row} in one row",
                "load the model with a larger per_row, or give some residency='merged'",
            )
        return bound

    def resolve(self, adapters: Sequence[Adapter] | AdapterStack, *, beside: Sequence[Bound] = ()) -> Resolved:
        """As `bind`, and what is to be told: of a stack, those that act as it decides; of others, where their order
        counts. Errors: those of `bind` for adapters that act."""
        if not isinstance(adapters, AdapterStack):
            bound = self.bind(adapters, beside=beside)
            return Resolved(bound=bound, lines=notes(self._readings(adapters)))
        decided = decide(adapters, self._readings(tuple(adapters)))
        bound = self.bind([one for one in adapters if one.title in decided.kept], beside=beside)
        revised = tuple(
            one.revised(decided.changes[one.adapter.title], self.bank)
            if isinstance(one, BoundLora) and one.adapter.title in decided.changes
            else one
            for one in bound
        )
        return Resolved(bound=revised, lines=decided.lines)

    def read(self, source: str | Path) -> Lora | ControlFile | ImagePrompt:
        """An adapter's file in memory: at a path, on the Hub, or by its name among those that came with the model.
        Errors: `CheckpointError` and its kinds."""
        return self.library.get(self.own.locate(source))

    def place(self, bound: Sequence[Bound], canvas: Canvas | None = None) -> Placed:
        """The adapters over a canvas, which LoRA need not. Errors: `InvalidInput` for pictures that do not fit it."""
        if canvas is None:
            return Placed(host=self, loras=tuple(one for one in bound if isinstance(one, BoundLora)))
        return Placed(
            host=self,
            loras=tuple(one for one in bound if isinstance(one, BoundLora)),
            controls=tuple(one.place(canvas) for one in bound if isinstance(one, BoundControl)),
            pictures=tuple(one.place(canvas) for one in bound if isinstance(one, BoundPicture)),
        )

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
            if isinstance(one, BoundLora)
            and (gain := one.adapter.text_gain(steps))
            and one.lora.updates.keys() - {"unet"}
        ]
        if not acting:
            return stack

        @cache  # for all texts of a request
        def weights(encoder: TextEncoder) -> Mapping[str, Tensor]:
            acting_on = [
                Active(changes=changes(lora, lora.path.stem, lora.updates[encoder.kind], {}), gain=gain)
                for lora, gain in acting
                if encoder.kind in lora.updates
            ]
            return adapted_weights(encoder, acting_on)

        key = tuple((lora.content_hash, gain) for lora, gain in acting)
        return stack.adapted(Adaptation(key=key, weights=weights))

    def _readings(self, adapters: Sequence[Adapter]) -> tuple[Reading, ...]:
        return read_all(self.read, self.unet.config, adapters)

    def _read(self, source: str | Path) -> Lora | ControlFile | ImagePrompt:
        match adapter_kind(source):
            case "lora":
                return read_lora(source, self.targets)
            case "image_prompt":
                return read_image_prompt(source, self.unet)
            case _:
                file = read_control(source, self.unet)
                if self.fixed and isinstance(file.network, ControlNet):
                    compile_control(file.network)
                return file

    def _bind(self, adapter: Adapter, hint: Hint | None) -> Bound:
        read = self.read(adapter.source)
        match read:
            case Lora():
                points = self.targets.layers["unet"]
                bound = BoundLora.read(adapter, read, self.targets, self.bank)
            case ControlFile():
                points = read.network.points
                bound = BoundControl(adapter=adapter, file=read, hint=hint)
            case ImagePrompt():
                points = self.unet.config.cross_attentions()
                encoder = self.encoders.for_adapter(adapter, read)
                bound = BoundPicture.read(adapter, read, encoder, self.unet.config)
        if hint is not None and not isinstance(read, ControlFile):
            raise InvalidInput(f"control hint of {adapter.title}", "given", "nothing: it is no control network")
        _check_blocks(adapter, list(points))
        return bound


def _check_blocks(adapter: Adapter, points: Sequence[str]) -> None:
    for pattern in adapter.blocks or {}:
        if not any(fnmatchcase(point, pattern) for point in points):
            near = get_close_matches(pattern, points, 3)
            raise InvalidInput(
                f"blocks of {adapter.title}",
                repr(pattern),
                "a pattern of names where it acts",
                f"e.g. {', '.join(near or points[:3])}",
            )
