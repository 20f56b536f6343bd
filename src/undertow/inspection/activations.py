"""How the activations of every layer, and the picture itself, move over the steps."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import add

import torch
from torch import Tensor, nn

from undertow.engine.layout import Layout
from undertow.engine.rows import Origin, Row
from undertow.inspection.attention_choice import AttentionChoice, is_seen
from undertow.inspection.probe import every_row
from undertow.inspection.sums import Sums
from undertow.unet.unet import UNet

SAW_EVERYTHING = AttentionChoice()


@dataclass(frozen=True)
class LayerStep:
    """One layer at one step, over the rows with a prompt. stds: the sum of their standard deviations. largest:
    magnitude of any number. rows: how many there are."""

    stds: float
    largest: float
    rows: int = 1

    @property
    def std(self) -> float:
        """The mean over rows."""
        return self.stds / self.rows

    def __add__(self, other: "LayerStep") -> "LayerStep":
        return LayerStep(self.stds + other.stds, max(self.largest, other.largest), self.rows + other.rows)


@dataclass(frozen=True)
class JoinStep:
    """Where a decoder layer joins a skip connection, at one step: sums over rows of the mean squares of what comes from
    below, and of the skip."""

    backbone: float
    skip: float

    @property
    def skip_share(self) -> float:
        """Of the energy of both."""
        return self.skip / max(self.skip + self.backbone, torch.finfo(torch.float32).tiny)

    def __add__(self, other: "JoinStep") -> "JoinStep":
        return JoinStep(self.backbone + other.backbone, self.skip + other.skip)


@dataclass(kw_only=True, eq=False)
class ActivationProbe:
    """A probe for `Engine.probes`: statistics of every layer's output, of every skip connection where it is joined, and
    the noisy latents, for the rows with a prompt. rows: which concern it. Layers and joins of a refiner begin with
    "refiner.". seen: what the network received, by picture and step, each window."""

    unet: UNet
    refiner: UNet | None = None
    rows: Callable[[Origin], bool] = every_row
    seen: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)
    layout: Layout | None = field(default=None, init=False, repr=False)
    _layers: Sums[tuple[str, int], LayerStep] = field(default_factory=lambda: Sums(join=add), init=False, repr=False)
    _joins: Sums[tuple[str, int], JoinStep] = field(default_factory=lambda: Sums(join=add), init=False, repr=False)

    @property
    def layers(self) -> dict[tuple[str, int], LayerStep]:
        """By name and step."""
        return dict(self._layers.items())

    @property
    def joins(self) -> dict[tuple[str, int], JoinStep]:
        """By name and step."""
        return dict(self._joins.items())

    def wants(self, rows: Sequence[Row]) -> bool:
        return rows[0].unet in (self.unet, self.refiner) and any(self._concerns(row) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        concerned = [(index, row) for index, row in enumerate(rows) if self._concerns(row)]
        for sums in (self._layers, self._joins):
            sums.begin([row for _, row in concerned])
        for _, row in concerned:
            self._keep(row)
        prefix = "" if unet is self.unet else "refiner."
        handles = [
            unet.get_submodule(name).register_forward_hook(self._after(prefix + name, concerned))
            for name in unet.config.layer_names()
        ]
        channels = [skip for skip, _, _ in unet.config.skip_shapes(1, 1)][::-1]
        joined = [name for name in unet.config.layer_names() if name.startswith("up_blocks.") and ".resnets." in name]
        handles += [
            unet.get_submodule(name).register_forward_pre_hook(self._before(prefix + name, skip, concerned))
            for name, skip in zip(joined, channels, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget(self, rows: Sequence[Row]) -> None:
        """As `engine.probing.Forgetful`."""
        self._layers.forget(rows)
        self._joins.forget(rows)

    def latents(self, picture: int) -> dict[int, Tensor]:
        """What the network received at each step, [1, channels, height, width], its windows together."""
        found = self.seen.get((picture, 0), {})
        if self.layout is None:
            return found
        windows = range(len(self.layout.windows))
        parts = {step: [self.seen[picture, window].get(step) for window in windows] for step in found}
        return {
            step: self.layout.merge_tiles([one for one in each if one is not None])
            for step, each in parts.items()
            if None not in each and each[0] is not None and tuple(each[0].shape[2:]) == self.layout.tile
        }

    def _concerns(self, row: Row) -> bool:
        return is_seen(row, SAW_EVERYTHING, "conditional", self.rows)

    def _keep(self, row: Row) -> None:
        self.layout = row.layout
        steps = self.seen.setdefault((row.origin.picture, row.origin.window), {})
        steps.setdefault(row.origin.step, row.latents[:, : row.unet.config.out_channels].float())

    def _after(self, name: str, concerned: Sequence[tuple[int, Row]]):
        def see(module: nn.Module, inputs: object, output: Tensor) -> None:
            del module, inputs
            if output.shape[0] < len(concerned):
                return  # all rows share what the timestep became
            for index, row in concerned:
                values = output[index].float()
                found = LayerStep(values.std(correction=0).item(), values.abs().amax().item())
                self._layers.put(row, (name, row.origin.step), found)

        return see

    def _before(self, name: str, channels: int, concerned: Sequence[tuple[int, Row]]):
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            for index, row in concerned:
                squares = inputs[0][index].float().square()
                found = JoinStep(squares[:-channels].mean().item(), squares[-channels:].mean().item())
                self._joins.put(row, (name, row.origin.step), found)

        return see
