"""Queries and keys of attention layers, as they leave their projections; the layers' own kernels run as ever."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from undertow.engine.rows import Row
from undertow.nn.attention import AttentionInputs, AttentionProjections
from undertow.unet.unet import UNet

CHUNK_SCORES = 2**20
"""Scores that are held at once, 4 MiB of them: queries are taken in parts as large as that allows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Projected:
    """One call of an attention layer. queries: [batch, cells, dim], and keys: [batch, keys, dim], after everything that
    acts on the projections (LoRA in slots or merged). mask: True where a query may attend to a key, or `None`. grid:
    rows and columns of the cells."""

    site: str
    heads: int
    queries: Tensor
    keys: Tensor
    mask: Tensor | None
    grid: tuple[int, int]

    def probabilities(self, row: int, heads: Sequence[int] | None) -> Generator[Tensor]:
        """softmax(query keyᵀ / sqrt(head_dim)) (arXiv:1706.03762, eq. 1) of one row of the batch, [heads, some queries,
        keys] in float32, one part of the queries after the other. A query that may attend to nothing has zeros."""
        query, key = self._split(self.queries[row], heads), self._split(self.keys[row], heads)
        query, key = query * query.shape[-1] ** -0.5, key.mT
        mask = None if self.mask is None else self.mask[row if self.mask.shape[0] > 1 else 0]
        size = max(1, CHUNK_SCORES // (len(query) * key.shape[-1]))
        for start in range(0, query.shape[1], size):
            scores = query[:, start : start + size] @ key
            if mask is None:
                yield scores.softmax(-1)
                continue
            unseen = ~(mask if mask.shape[1] == 1 else mask[:, start : start + size])
            yield scores.masked_fill_(unseen, torch.finfo(scores.dtype).min).softmax(-1).masked_fill_(unseen, 0.0)

    def _split(self, x: Tensor, heads: Sequence[int] | None) -> Tensor:
        split = x.unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return (split if heads is None else split[list(heads)]).float()


@contextmanager
def projected(
    unet: UNet, sites: Sequence[str], rows: Sequence[tuple[int, Row]], see: Callable[[Projected, int, Row], None]
) -> Generator[None]:
    """Calls `see` at every call of these attention layers meanwhile, for each of these rows with its place in the
    batch."""

    def see_rows(call: Projected) -> None:
        for index, row in rows:
            see(call, index, row)

    handles = [handle for site in sites for handle in _hooks(site, unet.get_submodule(site), see_rows)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(site: str, layer: nn.Module, see: Callable[[Projected], None]) -> list[torch.utils.hooks.RemovableHandle]:
    assert isinstance(layer, AttentionProjections)
    called: list[tuple[Tensor, AttentionInputs]] = []
    queries: list[Tensor] = []
    met: list[Projected] = []

    def enter(module: nn.Module, inputs: tuple[Tensor, AttentionInputs]) -> None:
        del module
        called[:] = [inputs]
        met.clear()

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        queries[:] = [output]

    def meet(module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        if not called:
            return  # another probe computes the layer once more, to replace what it returned
        (x, given), (query,) = called.pop(), queries
        height = given.height if x.ndim == 3 else x.shape[2]  # of pixel models, layers receive the map itself
        mask = given.mask if layer.is_cross else None
        grid = (height, query.shape[1] // height)
        met[:] = [Projected(site=site, heads=layer.heads, queries=query, keys=output, mask=mask, grid=grid)]

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs, output
        if met:  # nothing where the layer was called once more from within, in float32, and that was seen
            see(met.pop())

    return [
        layer.register_forward_pre_hook(enter),
        layer.to_q.register_forward_hook(keep),
        layer.to_k.register_forward_hook(meet),
        layer.register_forward_hook(leave),
    ]
