"""Self-attention by what remains of it when its square of scores is summed up: entropies, and attention received."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from undertow.doors import checked
from undertow.engine.rows import Origin, Row
from undertow.inspection.attention_choice import AttentionChoice, GuidanceSide, is_seen
from undertow.inspection.probe import every_row
from undertow.inspection.projections import Projected, projected
from undertow.inspection.sums import Sums
from undertow.unet.unet import UNet

_Key = tuple[int, int, str, int, tuple[int, int]]
"""Request, picture, layer, window, and rows and columns of its cells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SelfAttentionMaps:
    """One self-attention, averaged over heads and steps. entropy: of the attention that each cell pays, in nats, from 0
    (to one cell alone) to the logarithm of the number of cells (to all alike). received: how much each cell is attended
    to by all; 1 on average."""

    site: str
    window: int
    entropy: Float32[Tensor, "height width"]
    received: Float32[Tensor, "height width"]


@dataclass(kw_only=True, eq=False)
class SelfAttentionProbe:
    """A probe for `Engine.probes`, as `AttentionMapProbe` is, for self-attention: of N cells it keeps 2 N numbers for
    each layer, never the N² of its map. It costs about as much as the layer's own attention."""

    unet: UNet
    refiner: UNet | None = None
    choice: AttentionChoice = AttentionChoice()
    side: GuidanceSide = "conditional"
    rows: Callable[[Origin], bool] = every_row
    _sums: Sums[_Key, tuple[Tensor, int]] = field(default_factory=lambda: Sums(join=_added), init=False, repr=False)

    def wants(self, rows: Sequence[Row]) -> bool:
        return rows[0].unet in (self.unet, self.refiner) and any(
            is_seen(row, self.choice, self.side, self.rows) for row in rows
        )

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        height, width = rows[0].latents.shape[2:]
        sites = self.choice.self_attentions(unet, (height, width))
        seen = [(index, row) for index, row in enumerate(rows) if is_seen(row, self.choice, self.side, self.rows)]
        self._sums.begin([row for _, row in seen])
        with projected(unet, sites, seen, self._add):
            yield

    def forget(self, rows: Sequence[Row]) -> None:
        """As `engine.probing.Forgetful`."""
        self._sums.forget(rows)

    @checked
    def maps(self, request: int = 0, picture: int = 0) -> list[SelfAttentionMaps]:
        """Those of one picture, a layer after the other."""
        found: list[SelfAttentionMaps] = []
        for key, (total, count) in self._sums.items():
            if key[:2] == (request, picture):
                entropy, received = (total / count).cpu().unflatten(1, key[4])
                found.append(SelfAttentionMaps(site=key[2], window=key[3], entropy=entropy, received=received))
        return found

    def _add(self, call: Projected, index: int, row: Row) -> None:
        origin = row.origin
        site = call.site if row.unet is self.unet else f"refiner.{call.site}"
        key = (origin.request, origin.picture, site, origin.window, call.grid)
        parts = list(reduced(call, index, self.choice.heads))
        entropy, received = torch.cat([one for one, _ in parts]), torch.stack([two for _, two in parts]).sum(0)
        self._sums.add(row, key, (torch.stack([entropy, received]), 1))


def _added(a: tuple[Tensor, int], b: tuple[Tensor, int]) -> tuple[Tensor, int]:
    return a[0] + b[0], a[1] + b[1]


def reduced(call: Projected, index: int, heads: Sequence[int] | None) -> Generator[tuple[Tensor, Tensor]]:
    """Of each part of one row's queries, the mean over heads: their entropies, and what they give to each key."""
    for part in call.probabilities(index, heads):
        yield torch.special.entr(part).sum(-1).mean(0), part.mean(0).sum(0)
