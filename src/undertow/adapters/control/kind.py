"""ControlNet, Control-LoRA and T2I-Adapter as a kind of adapter: each with its control map, laid over the latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.control.control_file import ControlFile, control_format, control_from
from undertow.adapters.control.control_lora import is_control_lora
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.residuals import (
    Area,
    ControlInput,
    ControlRow,
    FeatureRow,
    residual_gains,
    residual_port,
)
from undertow.adapters.control.t2i import T2IAdapter
from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.files.picture_readers import require_pictures
from undertow.adapters.kind import AdapterKind, BatchRow
from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.pictures import Hint, LatentGrid
from undertow.adapters.rules import require_control
from undertow.errors import InvalidInput
from undertow.memory.adapter_networks import AdapterNetworks, WholeFile
from undertow.memory.component import READ_AT_EVERY_STEP
from undertow.pictures.files import several
from undertow.unet.conditioning import Ports, Residuals
from undertow.unet.runner import Runner

Map = Float[Tensor, "1 channels rows columns"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedControl:
    """A control network with the control map of a request. hint: a control map as a tensor in [0, 1], at the size of
    the picture, in place of the adapter's image. networks: which have the network in memory. Errors: `InvalidInput`
    for an adapter without a control map, or with fields that a control network does not have."""

    adapter: Adapter
    file: ControlFile
    hint: Hint | None = None
    networks: AdapterNetworks = field(default_factory=AdapterNetworks)

    def __post_init__(self) -> None:
        adapter, kind = self.adapter, self.file.title
        if self.hint is None:
            require_pictures(adapter, kind, several_allowed=False)
        elif several(adapter.image):
            raise InvalidInput(f"image of {adapter.title}", "given beside a control hint", "one of the two")
        require_control(adapter, kind, modes=isinstance(self.file.network, ControlNet))

    @property
    def loaded(self) -> ControlFile:
        """Its file in memory."""
        return self.file

    def note(self, *, guided: bool) -> str:
        """What it is, and on which side of guidance it acts where there are two."""
        if not guided:
            return self.file.title
        network = self.file.network
        alone = self.adapter.control_mode == "control" or (
            isinstance(network, ControlNet) and network.config.global_pool
        )
        where = "on the conditional side of guidance only" if alone else "on both sides of guidance"
        return f"{self.file.title}, {where}"

    def gains(self, step: int, steps: int, *, conditional: bool) -> tuple[float, ...]:
        """Gains of the network's `points` at a step, on the conditional or the unconditional side of guidance."""
        network, adapter = self.file.network, self.adapter
        scale = adapter.gain(step, steps)
        return residual_gains(
            len(network.points),
            [scale * adapter.factor(point) for point in network.points],
            adapter.control_mode,
            conditional=conditional,
            global_pool=isinstance(network, ControlNet) and network.config.global_pool,
        )

    def tile(self, grid: LatentGrid) -> "TiledControl":
        """The control map cut into the windows of the latents, each embedded once. Errors: `InvalidInput` for one of
        another shape."""
        network, title = self.file.network, self.adapter.title
        read = network.hint_size(*grid.cells)
        if self.hint is not None and tuple(self.hint.shape[2:]) != read:
            raise InvalidInput(f"control hint of {title}", list(self.hint.shape), f"[1, 3, {read[0]}, {read[1]}]")
        if self.hint is None and read != grid.pixels:
            (height, width), (rows, columns) = grid.pixels, grid.cells
            raise InvalidInput(
                title,
                f"a {self.file.title} that reads {read[1]}x{read[0]} pixels for {columns}x{rows} cells",
                f"{width}x{height}, as this model has",
                "use one trained for this model, or sides that are multiples of 64",
            )
        hint = grid.hint(title, self.adapter.images()[0]) if self.hint is None else self.hint
        hint = hint.to(device=network.device, dtype=network.dtype)
        masks = self.adapter.masks()
        areas: list[Area | None] = [None for _ in grid.pixel_windows(hint)]
        if masks:
            cells = torch.nn.functional.avg_pool2d(grid.area(title, masks[0]), grid.factor)
            areas = [area.to(hint) for area in grid.windows(cells)]
        seen = grid.pixel_windows(hint)
        with self.networks.using(network):
            windows = tuple(
                ControlWindow(embedded=self._embed(part), area=area) for part, area in zip(seen, areas, strict=True)
            )
        return TiledControl(resolved=self, windows=windows)

    def _embed(self, hint: Hint) -> Map | Residuals:
        network = self.file.network
        return network.embed_hint(hint) if isinstance(network, ControlNet) else network(hint)


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlWindow:
    """The control map in one window: embedded (ControlNet), or the features computed from it (T2I-Adapter)."""

    embedded: Map | Residuals
    area: Area | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledControl:
    """A control map over the latents, window by window."""

    resolved: ResolvedControl
    windows: tuple[ControlWindow, ...]

    def rows(self, window: int, step: int, steps: int, *, conditional: bool) -> tuple[ControlInput, ...]:
        """Its input to a row of this window at a step; empty where it does not act. conditional: the side of
        guidance."""
        gains = self.resolved.gains(step, steps, conditional=conditional)
        if not any(gains):
            return ()
        seen, network = self.windows[window], self.resolved.file.network
        if isinstance(seen.embedded, Residuals):
            return (FeatureRow(features=seen.embedded, gains=gains, area=seen.area),)
        assert isinstance(network, ControlNet)  # whose hints are embedded
        title = self.resolved.adapter.title
        return (ControlRow(network=network, hint=seen.embedded, gains=gains, area=seen.area, title=title),)


class ControlKind(AdapterKind[ControlFile, ResolvedControl, ControlInput]):
    """Networks that run beside the U-Net and add residuals to it: ControlNet, Control-LoRA, T2I-Adapter."""

    loaded, resolved, inputs = ControlFile, ResolvedControl, (ControlRow, FeatureRow)

    @staticmethod
    def identify(opened: OpenedAdapter) -> str | None:
        found = control_format(opened)
        return None if found is None else f"a {found}"

    @staticmethod
    def reads_base(opened: OpenedAdapter) -> bool:
        return is_control_lora(opened.names)

    def read(self, opened: OpenedAdapter) -> ControlFile:
        """A Control-LoRA stays in memory: it is made of the U-Net's weights, which may not be there when it is read
        again."""
        networks, unet = self.model.networks, self.model.unet
        numbers = sum(one.count for one in opened.tensors.values())
        with networks.arriving(numbers * unet.dtype.itemsize):
            file = control_from(opened, unet)
            if not self.reads_base(opened):
                home = WholeFile(path=opened.path, version=file.content_hash, load=partial(self._again, opened.place))
                networks.add(file.network, file.title, READ_AT_EVERY_STEP, home)
        return file

    def _again(self, place: Path) -> tuple[ControlNet | T2IAdapter, str]:
        with open_adapter(place) as opened:
            file = control_from(opened, self.model.unet)
        return file.network, file.content_hash

    def points(self, loaded: ControlFile) -> Sequence[str]:
        return loaded.network.points

    def resolve(
        self,
        adapter: Adapter,
        loaded: ControlFile,
        *,
        hint: Hint | None = None,
        layers: LayerUpdates | None = None,
    ) -> ResolvedControl:
        return ResolvedControl(adapter=adapter, file=loaded, hint=hint, networks=self.model.networks)

    def ports(
        self,
        rows: Sequence[BatchRow],
        inputs: Sequence[Sequence[ControlInput]],
        ports: Ports,
        runner: Runner,
        at_once: int | None,
    ) -> Ports:
        named = (one.named_network for row in inputs for one in row)
        used = dict.fromkeys(network for _, network in filter(None, named))
        with self.model.networks.using(*used):
            residuals = residual_port(rows, inputs, at_once, runner, given=ports.residuals, parts=ports)
        return replace(ports, residuals=residuals)
