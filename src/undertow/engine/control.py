"""The residual port of a batch: control networks run on the rows that use them, and what they say added up by row."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.residuals import masked, pooled, scaled
from undertow.adapters.row_inputs import ControlRow, FeatureRow, SideInput
from undertow.engine.rows import Row
from undertow.unet.conditioning import Residuals, concatenate

Map = Float[Tensor, "..."]


def residual_port(
    rows: Sequence[Row], side_inputs: Sequence[Sequence[SideInput]], at_once: int | None = None
) -> Residuals | None:
    """What control networks add to every row; zeros where nothing acts, `None` when nothing acts at all.

    side_inputs: what acts in each row. at_once: rows of every forward of a ControlNet; `None` runs all of one's
    together.
    """
    controls = [
        (index, one) for index, acting in enumerate(side_inputs) for one in acting if isinstance(one, ControlRow)
    ]
    features = [
        (index, one) for index, acting in enumerate(side_inputs) for one in acting if isinstance(one, FeatureRow)
    ]
    if not controls and not features:
        return None
    total = _Total(rows)
    for network in dict.fromkeys(one.network for _, one in controls):
        uses = [(index, one) for index, one in controls if one.network is network]
        size = len(uses) if at_once is None else at_once
        for start in range(0, len(uses), size):
            part = uses[start : start + size]
            indices = [index for index, _ in part]
            total.add(indices, _run(network, [rows[index] for index in indices], [one for _, one in part], size))
    for index, one in features:
        total.add([index], _acting(one.features, [one]))
    return total.residuals()


class _Total:
    """Sums by row, each place made when something is added there."""

    def __init__(self, rows: Sequence[Row]):
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
        """Everything that was added."""
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


def _run(network: ControlNet, rows: Sequence[Row], acting: Sequence[ControlRow], size: int) -> Residuals:
    """One forward of a ControlNet for some rows. size: of the forward; the first row fills it up."""
    more = size - len(rows)
    rows, hints = [*rows, *[rows[0]] * more], [one.hint for one in (*acting, *[acting[0]] * more)]
    channels = network.config.unet.in_channels  # of an inpainting model's input it reads the latents alone
    found = network(
        torch.cat([row.latents for row in rows])[:, :channels],
        torch.cat([row.timestep for row in rows]),
        concatenate([row.conditioning for row in rows]),
        torch.cat(hints),
    )
    assert found.middle is not None  # a ControlNet has one
    wanted = Residuals(skips=tuple(skip[: len(acting)] for skip in found.skips), middle=found.middle[: len(acting)])
    return _acting(pooled(wanted) if network.config.global_pool else wanted, acting)


def _acting(residuals: Residuals, acting: Sequence[ControlRow | FeatureRow]) -> Residuals:
    """What some rows' residuals add, at their gains and in their areas."""
    assert residuals.middle is not None or residuals.running  # so that there is something whose device counts
    device = next(one for one in (residuals.middle, *residuals.running) if one is not None).device
    found = scaled(residuals, torch.tensor([one.gains for one in acting], device=device))
    areas = [one.area for one in acting if one.area is not None]
    if not areas:
        return found
    everywhere = torch.ones_like(areas[0])
    return masked(found, torch.cat([everywhere if one.area is None else one.area for one in acting]))
