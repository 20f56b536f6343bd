"""Maps of cross-attention: which token each cell of a picture attends to, beside whatever kernel computes the result.

As DAAM (arXiv:2210.04885) does, probabilities are averaged over layers, heads and steps, each layer's enlarged to the
size of the latents first. Unlike it nothing is kept but running sums: softmax(query keyᵀ) is computed again, for the
chosen rows and layers alone, in parts of the queries.
"""

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from undertow.doors import checked
from undertow.encoders.reading import Reading
from undertow.engine.layout import Layout
from undertow.engine.rows import Origin, Row
from undertow.inspection.attention_choice import AttentionChoice, GuidanceSide, is_seen
from undertow.inspection.attention_sites import require_cells
from undertow.inspection.probe import every_row
from undertow.inspection.projections import Projected, projected
from undertow.inspection.sums import Sums
from undertow.unet.unet import UNet

Heat = Float32[Tensor, "tokens height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenMaps:
    """The maps of one context. heat: the share of attention that each token has in each cell; over all tokens the sum
    is 1 in every cell. reading: what the tokens say, `None` where contexts came without texts. branch: that the context
    conditioned. steps: how many were averaged."""

    heat: Heat
    reading: Reading | None
    branch: str
    steps: int


@dataclass(frozen=True)
class _Key:
    """What is summed apart. grid: of the attention layers."""

    picture: tuple[int, int]
    branch: str
    reading: Reading | None
    layout: Layout
    window: int
    grid: tuple[int, int]


_Sum = tuple[Tensor, int]
"""Of maps, and how many."""


@dataclass(kw_only=True, eq=False)
class AttentionMapProbe:
    """A probe for `Engine.probes` that sums cross-attention for every picture of every request that it sees.

    unet: whose forwards it looks into. refiner: the network of the last steps, whose layers are averaged with those of
    the first where they have the chosen names and heads. choice: of which layers, heads and steps. side: of guidance.
    rows: which concern it.

        probe = AttentionMapProbe(unet=service.unet)
        service.engine.probes.append(probe)
    """

    unet: UNet
    refiner: UNet | None = None
    choice: AttentionChoice = AttentionChoice()
    side: GuidanceSide = "conditional"
    rows: Callable[[Origin], bool] = every_row
    _sums: Sums[_Key, _Sum] = field(default_factory=lambda: Sums(join=_added), init=False, repr=False)
    _steps: dict[Hashable, set[int]] = field(default_factory=dict, init=False, repr=False)
    _sides: set[int] = field(default_factory=set, init=False, repr=False)
    """Of the maps that went by."""

    def wants(self, rows: Sequence[Row]) -> bool:
        return rows[0].unet in (self.unet, self.refiner) and any(self._is_seen(row) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        height, width = rows[0].latents.shape[2:]
        sites = self.choice.cross_attentions(unet, (height, width))
        seen = [(index, row) for index, row in enumerate(rows) if self._is_seen(row)]
        self._sides |= set(self.choice.sides(unet, unet.config.cross_attentions(), (height, width)).values())
        for _, row in seen if sites else ():
            steps = self._steps.setdefault((_picture(row.origin), row.origin.branch, row.reading), set())
            steps.add(row.origin.step)
        self._sums.begin([row for _, row in seen])
        with projected(unet, sites, seen, self._add):
            yield

    def forget(self, rows: Sequence[Row]) -> None:
        """As `engine.probing.Forgetful`."""
        self._sums.forget(rows)

    @checked
    def maps(self, request: int = 0, picture: int = 0) -> list[TokenMaps]:
        """Those of one picture: one for each context that conditioned it; several where prompts are composed, differ
        between steps, or belong to regions, and where a refiner reads them. Errors: `InvalidInput` where nothing that
        was drawn has layers of the chosen `cells`."""
        found = dict(self._sums.items())
        if self._sides and not found:
            require_cells(self.choice.cells, self._sides)
        sums = {key: value for key, value in found.items() if key.picture == (request, picture)}
        contexts = dict.fromkeys((key.branch, key.reading) for key in sums)
        return [
            TokenMaps(
                heat=_merged({key: one for key, one in sums.items() if (key.branch, key.reading) == (branch, reading)}),
                reading=reading,
                branch=branch,
                steps=len(self._steps[(request, picture), branch, reading]),
            )
            for branch, reading in contexts
        ]

    def _is_seen(self, row: Row) -> bool:
        return is_seen(row, self.choice, self.side, self.rows)

    def _add(self, call: Projected, index: int, row: Row) -> None:
        height, width = row.latents.shape[2:]
        key = _Key(
            picture=_picture(row.origin),
            branch=row.origin.branch,
            reading=row.reading,
            layout=Layout.whole((height, width)) if row.layout is None else row.layout,
            window=row.origin.window,
            grid=call.grid,
        )
        heat = torch.cat([part.mean(0) for part in call.probabilities(index, self.choice.heads)])
        self._sums.add(row, key, (heat, 1))


def _added(a: _Sum, b: _Sum) -> _Sum:
    return a[0] + b[0], a[1] + b[1]


def _merged(sums: Mapping[_Key, _Sum]) -> Heat:
    """Of all passes, at the size of the last one's latents, weighted by how many layers and steps each had."""
    parts: list[tuple[Tensor, int]] = []
    for layout in dict.fromkeys(key.layout for key in sums):
        here = {key: one for key, one in sums.items() if key.layout == layout}
        windows = sorted({key.window for key in here})
        means = [_window({key: one for key, one in here.items() if key.window == window}) for window in windows]
        parts.append((layout.merge_tiles([mean[None] for mean in means]), sum(count for _, count in here.values())))
    last, total = parts[-1][0], sum(count for _, count in parts)
    return sum((count / total * _resized(heat, last.shape[2:]) for heat, count in parts), torch.zeros_like(last))[0]


def _window(sums: Mapping[_Key, _Sum]) -> Heat:
    """The mean over the layers and steps of one window, at its size in latents."""
    total = sum(count for _, count in sums.values())
    size = next(iter(sums)).layout.tile
    maps = [heat.mT.unflatten(1, key.grid)[None].cpu() / total for key, (heat, _) in sums.items()]
    return torch.stack([_resized(one, size)[0] for one in maps]).sum(0)


def _picture(origin: Origin) -> tuple[int, int]:
    return origin.request, origin.picture


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[1, tokens, *size]: linear, so that shares still add up to 1."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
