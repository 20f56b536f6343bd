"""What control networks add to a batch, and how strongly: gains per residual, modes, masks, the residual port.

Residuals are counted as a network's `points` name them: the skips in order, or the places of `running` that are given,
and the middle last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.adapters.adapter import ControlMode
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.kind import BatchRow, RowInput
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Ports, Residuals, concatenate
from undertow.unet.runner import EAGER, Runner

WEAKEST = 0.1
"""Gain of the first residual in the modes "prompt" and "control"; the middle's is 1."""

Residual = Float[Tensor, "..."]
Mask = Float[Tensor, "batch 1 height width"]
Map = Float[Tensor, "..."]
Area = Float[Tensor, "1 1 rows columns"]
"""How strongly each cell of the latents takes part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlRow(RowInput):
    """A ControlNet that acts in a row. hint: embedded. gains: one for each of its `points`. area: where it acts,
    everywhere if `None`. title: the adapter's."""

    network: ControlNet
    hint: Float[Tensor, "1 channels height width"]
    gains: tuple[float, ...]
    area: Area | None = None
    title: str = ""

    @property
    def named_network(self) -> tuple[str, nn.Module]:
        return f"controlnet.{self.title}" if self.title else "controlnet", self.network


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRow(RowInput):
    """Residuals that do not depend on the latents (T2I-Adapter). gains: for `running` in order, then for `middle`."""

    features: Residuals
    gains: tuple[float, ...]
    area: Area | None = None


ControlInput = ControlRow | FeatureRow


def mode_gains(count: int, mode: ControlMode) -> tuple[float, ...]:
    """A mode's gain for each of `count` residuals, the middle's last: 10^(-1) to 10^0 in equal ratios (diffusers'
    `logspace(-1, 0, count)`; lllyasviel's 0.825^(count - 1 - i) is within 1 % of it for 13)."""
    if mode == "balanced" or count == 1:
        return (1.0,) * count
    return tuple(WEAKEST ** (1 - index / (count - 1)) for index in range(count))


def residual_gains(
    count: int,
    scale: float | Sequence[float] = 1.0,
    mode: ControlMode = "balanced",
    *,
    conditional: bool = True,
    global_pool: bool = False,
) -> tuple[float, ...]:
    """The gain of each residual on one side of guidance.

    scale: one for all residuals, or one for each. conditional: whether this is the side of the prompt. global_pool: the
    network's residuals are averaged; it then never acts on the unconditional side, and modes do not weaken it
    (diffusers). Errors: `InvalidInput` for a wrong number of scales.
    """
    scales = (scale,) * count if isinstance(scale, int | float) else tuple(scale)
    if len(scales) != count:
        raise InvalidInput("scale", f"{len(scales)} numbers", f"one, or {count}: the skips in order, then the middle")
    if not conditional and (mode == "control" or global_pool):
        return (0.0,) * count
    soft = mode_gains(count, "balanced" if global_pool else mode)
    return tuple(one * gain for one, gain in zip(scales, soft, strict=True))


def scaled(residuals: Residuals, gains: Float[Tensor, "batch points"]) -> Residuals:
    """Multiplies every residual by its gain, row by row. Errors: `InvalidInput` for a wrong number of gains."""
    given = sum(one is not None for one in (*residuals.skips, *residuals.running, residuals.middle))
    if gains.shape[1] != given:
        raise InvalidInput("gains", list(gains.shape), f"[batch, {given}], one for each residual")
    return _changed(residuals, lambda index, one: one * gains[:, index, None, None, None].to(one.dtype))


def pooled(residuals: Residuals) -> Residuals:
    """Replaces every residual by its mean over the picture (global pooling, ControlNet 1.1 shuffle)."""
    return _changed(residuals, lambda _, one: one.mean((2, 3), keepdim=True).expand_as(one))


def masked(residuals: Residuals, mask: Mask) -> Residuals:
    """Multiplies every residual by `mask`, resized to the residual's resolution."""
    return _changed(residuals, lambda _, one: one * resized(mask, one.shape[2], one.shape[3]).to(one.dtype))


def resized(mask: Mask, height: int, width: int) -> Float[Tensor, "batch 1 rows columns"]:
    """A mask at another resolution: averaged over areas when it shrinks, bilinear when it grows."""
    shrinks = height <= mask.shape[2] and width <= mask.shape[3]
    size = (height, width)
    return F.adaptive_avg_pool2d(mask, size) if shrinks else F.interpolate(mask, size, mode="bilinear")


def _changed(residuals: Residuals, change: Callable[[int, Residual], Residual]) -> Residuals:
    """Applies `change(index, residual)` to every residual that is present."""
    index = iter(range(len(residuals.skips) + len(residuals.running) + 1))
    return Residuals(
        skips=tuple(change(next(index), one) for one in residuals.skips),
        running=tuple(None if one is None else change(next(index), one) for one in residuals.running),
        middle=None if residuals.middle is None else change(next(index), residuals.middle),
    )


def residual_port(
    rows: Sequence[BatchRow],
    inputs: Sequence[Sequence[ControlInput]],
    at_once: int | None = None,
    runner: Runner = EAGER,
    *,
    given: Residuals | None = None,
    parts: Ports | None = None,
) -> Residuals | None:
    """The sum of what control networks add to each row: zeros for rows in which none acts, `None` if none acts at all.

    inputs: what acts in each row. at_once: rows of every forward of a ControlNet; `None` runs all of one's together.
    runner: of the ControlNets. given: what others add already. parts: as in `ControlNet.forward`.
    """
    placed = [(index, one) for index, row in enumerate(inputs) for one in row]
    controls = [(index, one) for index, one in placed if isinstance(one, ControlRow)]
    features = [(index, one) for index, one in placed if isinstance(one, FeatureRow)]
    if not controls and not features:
        return given
    total = _Total(rows)
    if given is not None:
        total.add(range(len(rows)), given)
    for network in dict.fromkeys(one.network for _, one in controls):
        uses = [(index, one) for index, one in controls if one.network is network]
        size = len(uses) if at_once is None else at_once
        for start in range(0, len(uses), size):
            part = uses[start : start + size]
            indices = [index for index, _ in part]
            chosen = [rows[index] for index in indices]
            total.add(indices, _run(runner, network, chosen, [one for _, one in part], size, parts))
    for index, one in features:
        total.add([index], _scaled_and_masked(one.features, [one]))
    return total.residuals()


class _Total:
    """Sums residuals by row; each sum is allocated when the first residual is added to it."""

    def __init__(self, rows: Sequence[BatchRow]):
        self._like, self._count = rows[0].latents, len(rows)
        self._shapes = rows[0].unet.config.skip_shapes(self._like.shape[2], self._like.shape[3])
        self._sums: dict[tuple[str, int], Map] = {}

    def add(self, indices: Sequence[int], parts: Residuals) -> None:
        """Adds the residuals of some rows."""
        for name, given in (("skips", parts.skips), ("running", parts.running), ("middle", (parts.middle,))):
            for place, part in enumerate(given):
                if part is not None:
                    self._add(name, place, indices, part)

    def residuals(self) -> Residuals:
        """The sums."""
        count = len(self._shapes)
        running = tuple(self._sums.get(("running", place)) for place in range(count))
        return Residuals(
            skips=tuple(part for place in range(count) if (part := self._sums.get(("skips", place))) is not None),
            middle=self._sums.get(("middle", 0)),
            running=running if any(part is not None for part in running) else (),
        )

    def _add(self, name: str, place: int, indices: Sequence[int], part: Map) -> None:
        if (name, place) not in self._sums:
            shape = self._shapes[-1 if name == "middle" else place]
            self._sums[name, place] = self._like.new_zeros(self._count, *shape)
        total = self._sums[name, place]
        total.index_add_(0, torch.tensor(indices, device=total.device), part.to(total.dtype))


def _run(
    runner: Runner,
    network: ControlNet,
    rows: Sequence[BatchRow],
    control_rows: Sequence[ControlRow],
    size: int,
    parts: Ports | None,
) -> Residuals:
    """One forward of a ControlNet for some rows. size: of the forward; the first row fills it up."""
    more = size - len(rows)
    rows, hints = [*rows, *[rows[0]] * more], [one.hint for one in (*control_rows, *[control_rows[0]] * more)]
    channels = network.config.unet.in_channels  # of an inpainting model's input it reads the latents alone
    found = runner.run(
        network,
        torch.cat([row.latents for row in rows])[:, :channels],
        torch.cat([row.timestep for row in rows]),
        concatenate([row.conditioning for row in rows]),
        torch.cat(hints),
        parts,
    )
    assert found.middle is not None  # a ControlNet has one
    wanted = Residuals(
        skips=tuple(skip[: len(control_rows)] for skip in found.skips), middle=found.middle[: len(control_rows)]
    )
    return _scaled_and_masked(pooled(wanted) if network.config.global_pool else wanted, control_rows)


def _scaled_and_masked(residuals: Residuals, control_rows: Sequence[ControlRow | FeatureRow]) -> Residuals:
    """The residuals of some rows, with gains and areas applied."""
    assert residuals.middle is not None or residuals.running  # so that there is something whose device counts
    device = next(one for one in (residuals.middle, *residuals.running) if one is not None).device
    found = scaled(residuals, torch.tensor([one.gains for one in control_rows], device=device))
    areas = [one.area for one in control_rows if one.area is not None]
    if not areas:
        return found
    everywhere = torch.ones_like(areas[0])
    return masked(found, torch.cat([everywhere if one.area is None else one.area for one in control_rows]))
