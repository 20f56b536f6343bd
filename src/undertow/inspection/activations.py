"""How the activations of every layer, and the picture itself, move over the steps."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from undertow.engine.layout import Layout
from undertow.engine.rows import Origin, Row
from undertow.inspection.attention_choice import AttentionChoice, is_seen
from undertow.inspection.probe import every_row
from undertow.unet.unet import UNet

SAW_EVERYTHING = AttentionChoice()


@dataclass(frozen=True)
class LayerStep:
    """One layer at one step, over the rows with a prompt. std: the mean over rows of their standard deviations.
    largest: magnitude of any number."""

    std: float
    largest: float


@dataclass(frozen=True)
class JoinStep:
    """Where a decoder layer joins a skip connection, at one step: mean squares of what comes from below, and of the
    skip."""

    backbone: float
    skip: float

    @property
    def skip_share(self) -> float:
        """Of the energy of both."""
        return self.skip / max(self.skip + self.backbone, torch.finfo(torch.float32).tiny)


@dataclass(kw_only=True, eq=False)
class ActivationProbe:
    """A probe for `Engine.probes`: statistics of every layer's output, of every skip connection where it is joined, and
    the noisy latents, for the rows with a prompt. rows: which concern it. layers, joins: by name
    and step; those of a refiner begin with "refiner.". seen: what the network received, by picture and step, each
    window."""

    unet: UNet
    refiner: UNet | None = None
    rows: Callable[[Origin], bool] = every_row
    layers: dict[tuple[str, int], LayerStep] = field(default_factory=dict, init=False, repr=False)
    joins: dict[tuple[str, int], JoinStep] = field(default_factory=dict, init=False, repr=False)
    seen: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)
    layout: Layout | None = field(default=None, init=False, repr=False)

    def wants(self, rows: Sequence[Row]) -> bool:
        return rows[0].unet in (self.unet, self.refiner) and any(self._concerns(row) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        concerned = [(index, row.origin.step) for index, row in enumerate(rows) if self._concerns(row)]
        for index, _ in concerned:
            self._keep(rows[index])
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

    def _after(self, name: str, concerned: Sequence[tuple[int, int]]):
        def see(module: nn.Module, inputs: object, output: Tensor) -> None:
            del module, inputs
            if output.shape[0] < len(concerned):
                return  # all rows share what the timestep became
            for index, step in concerned:
                row = output[index].float()
                std, largest = row.std(correction=0).item(), row.abs().amax().item()
                before = self.layers.get((name, step))
                if before is not None:
                    std, largest = (before.std + std) / 2, max(before.largest, largest)
                self.layers[name, step] = LayerStep(std, largest)

        return see

    def _before(self, name: str, channels: int, concerned: Sequence[tuple[int, int]]):
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            for index, step in concerned:
                row = inputs[0][index].float().square()
                self.joins[name, step] = JoinStep(row[:-channels].mean().item(), row[-channels:].mean().item())

        return see
