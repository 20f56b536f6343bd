"""What a loaded model is to adapters: where they are read for, where their changes live, and who uses which."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.control.control_file import ControlFile, read_control
from undertow.adapters.control.controlnet import ControlNet, compile_control
from undertow.adapters.control.kind import ResolvedControl, TiledControl
from undertow.adapters.files.bundled import BundledAdapters
from undertow.adapters.files.library import LIBRARY_BYTES, Library
from undertow.adapters.image_prompt.encoder import Encoders
from undertow.adapters.image_prompt.image_prompt_file import read_image_prompt
from undertow.adapters.image_prompt.kind import ResolvedImagePrompt, TiledImagePrompt
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.kinds import adapter_kind
from undertow.adapters.lora.bank import AdapterCapacity, Bank
from undertow.adapters.lora.kind import ResolvedLora, layer_updates
from undertow.adapters.lora.lora_file import Lora, read_lora
from undertow.adapters.lora.merge import MergedWeights, adapted_weights
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.updates import ScaledUpdates
from undertow.adapters.pictures import Hint, LatentGrid
from undertow.adapters.row_inputs import SideInput
from undertow.adapters.stack import AdapterStack
from undertow.adapters.stacking.conflicts import AdapterSummary
from undertow.adapters.stacking.decisions import decide, describe_interactions
from undertow.adapters.stacking.summary import summarize_all
from undertow.encoders.clip import TextEncoder
from undertow.encoders.text_stack import Adaptation, TextStack
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.unet.unet import UNet

ResolvedAdapter = ResolvedLora | ResolvedControl | ResolvedImagePrompt
"""A request's adapter, read for a model, with its pictures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resolution:
    """A request's adapters that act, and the notes of a report on how they act together."""

    adapters: tuple[ResolvedAdapter, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowAdapters:
    """What acts in one row of a batch. manager: of the row's U-Net, also for rows in which nothing acts. banked,
    merged: updates of weights. side_inputs: what acts beside the weights."""

    manager: "AdapterManager"
    banked: tuple[ScaledUpdates, ...] = ()
    merged: tuple[ScaledUpdates, ...] = ()
    side_inputs: tuple[SideInput, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward: those with equal weights."""
        return tuple(scaled.signature for scaled in self.merged)


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledAdapters:
    """A request's adapters over the latents of one pass."""

    manager: "AdapterManager"
    loras: tuple[ResolvedLora, ...] = ()
    controls: tuple[TiledControl, ...] = ()
    pictures: tuple[TiledImagePrompt, ...] = ()

    def with_more(self, other: "TiledAdapters") -> "TiledAdapters":
        """These and others, over the same latents."""
        return TiledAdapters(
            manager=self.manager,
            loras=self.loras + other.loras,
            controls=self.controls + other.controls,
            pictures=self.pictures + other.pictures,
        )

    def row(self, step: int, steps: int, *, window: int = 0, conditional: bool = True) -> RowAdapters:
        """What acts in a window of the latents at a step. conditional: on that side of guidance."""
        banked: list[ScaledUpdates] = []
        merged: list[ScaledUpdates] = []
        for one in self.loras:
            scaled = one.scaled(step, steps)
            if scaled is not None:
                (banked if one.decision.residency == "banked" else merged).append(scaled)
        controls = [tiled.row(window, step, steps, conditional=conditional) for tiled in self.controls]
        pictures = [row for tiled in self.pictures for row in tiled.rows(window, step, steps, conditional=conditional)]
        side_inputs = (*(row for row in controls if row is not None), *pictures)
        return RowAdapters(manager=self.manager, banked=tuple(banked), merged=tuple(merged), side_inputs=side_inputs)


class AdapterManager:
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
        self.bundled = BundledAdapters(folder)
        self.bank = None if capacity is None else Bank(unet, capacity, fixed=fixed)
        self.merged = MergedWeights(unet)
        self.targets = Targets.of(unet, () if text is None else text.encoders)
        self.library = Library(self._read, library_bytes)
        self.encoders = Encoders(unet.device, folder)

    def resolve_each(
        self,
        adapters: Sequence[Adapter],
        *,
        beside: Sequence[ResolvedAdapter] = (),
        hints: Mapping[str, Hint] | None = None,
    ) -> tuple[ResolvedAdapter, ...]:
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
        resolved = tuple(self._resolve(adapter, hints.get(adapter.title)) for adapter in adapters)
        loras = [one for one in (*beside, *resolved) if isinstance(one, ResolvedLora)]
        banked = [one for one in loras if one.decision.residency == "banked"]
        if self.bank is not None and len(banked) > self.bank.capacity.per_row:
            raise InvalidInput(
                "adapters",
                f"{len(banked)} in slots",
                f"at most capacity.per_row = {self.bank.capacity.per_row} in one row",
                "load the model with a larger per_row, or give some residency='merged'",
            )
        return resolved

    def resolve(
        self, adapters: Sequence[Adapter] | AdapterStack, *, beside: Sequence[ResolvedAdapter] = ()
    ) -> Resolution:
        """As `resolve_each`, and notes for the report: of a stack, those that act as it decides; of others, where their
        order counts. Errors: those of `resolve_each` for adapters that act."""
        if not isinstance(adapters, AdapterStack):
            resolved = self.resolve_each(adapters, beside=beside)
            return Resolution(adapters=resolved, notes=describe_interactions(self._summaries(adapters)))
        decided = decide(adapters, self._summaries(tuple(adapters)))
        resolved = self.resolve_each([one for one in adapters if one.title in decided.kept], beside=beside)
        revised = tuple(
            one.revised(decided.layers[one.adapter.title], self.bank)
            if isinstance(one, ResolvedLora) and one.adapter.title in decided.layers
            else one
            for one in resolved
        )
        return Resolution(adapters=revised, notes=decided.notes)

    def read(self, source: str | Path) -> Lora | ControlFile | ImagePrompt:
        """An adapter's file in memory: at a path, on the Hub, or by its name among those that came with the model.
        Errors: `CheckpointError` and its kinds."""
        return self.library.get(self.bundled.locate(source))

    def tile(self, resolved: Sequence[ResolvedAdapter], grid: LatentGrid | None = None) -> TiledAdapters:
        """The adapters over the latents; LoRA needs no grid. Errors: `InvalidInput` for pictures that do not fit it."""
        if grid is None:
            return TiledAdapters(manager=self, loras=tuple(one for one in resolved if isinstance(one, ResolvedLora)))
        return TiledAdapters(
            manager=self,
            loras=tuple(one for one in resolved if isinstance(one, ResolvedLora)),
            controls=tuple(one.tile(grid) for one in resolved if isinstance(one, ResolvedControl)),
            pictures=tuple(one.tile(grid) for one in resolved if isinstance(one, ResolvedImagePrompt)),
        )

    def prepare_weights(self, rows: Sequence[RowAdapters]) -> WeightRows | None:
        """Makes the U-Net's weights those that all these rows share, and gives their weight port."""
        self.merged.set_active(rows[0].merged)
        return None if self.bank is None else self.bank.assign_slots([row.banked for row in rows])

    def fits(self, rows: Sequence[RowAdapters]) -> bool:
        """Whether these rows can share a forward."""
        return self.bank is None or self.bank.fits([row.banked for row in rows])

    def unmerge(self) -> None:
        """The U-Net's own weights, bit for bit."""
        self.merged.set_active(())

    def text(self, stack: TextStack, resolved: Sequence[ResolvedAdapter], steps: int) -> TextStack:
        """The stack as it reads under these adapters."""
        acting = [
            (one.lora, gain)
            for one in resolved
            if isinstance(one, ResolvedLora)
            and (gain := one.adapter.text_gain(steps))
            and one.lora.updates.keys() - {"unet"}
        ]
        if not acting:
            return stack

        @cache  # for all texts of a request
        def weights(encoder: TextEncoder) -> Mapping[str, Tensor]:
            scaled = [
                ScaledUpdates(layers=layer_updates(lora, lora.path.stem, lora.updates[encoder.kind], {}), gain=gain)
                for lora, gain in acting
                if encoder.kind in lora.updates
            ]
            return adapted_weights(encoder, scaled)

        key = tuple((lora.content_hash, gain) for lora, gain in acting)
        return stack.adapted(Adaptation(key=key, weights=weights))

    def _summaries(self, adapters: Sequence[Adapter]) -> tuple[AdapterSummary, ...]:
        return summarize_all(self.read, self.unet.config, adapters)

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

    def _resolve(self, adapter: Adapter, hint: Hint | None) -> ResolvedAdapter:
        read = self.read(adapter.source)
        match read:
            case Lora():
                points = self.targets.layers["unet"]
                resolved = ResolvedLora.read(adapter, read, self.targets, self.bank)
            case ControlFile():
                points = read.network.points
                resolved = ResolvedControl(adapter=adapter, file=read, hint=hint)
            case ImagePrompt():
                points = self.unet.config.cross_attentions()
                encoder = self.encoders.for_adapter(adapter, read)
                resolved = ResolvedImagePrompt.read(adapter, read, encoder, self.unet.config)
        if hint is not None and not isinstance(read, ControlFile):
            raise InvalidInput(f"control hint of {adapter.title}", "given", "nothing: it is no control network")
        _check_blocks(adapter, list(points))
        return resolved


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
