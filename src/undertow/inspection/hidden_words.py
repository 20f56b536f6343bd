"""Words hidden from a part of the picture: whether what a map shows is what draws it."""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from undertow.encoders.reading import Reading
from undertow.engine.layout import box_mask
from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.inspection.attention_choice import AttentionChoice, is_seen
from undertow.inspection.probe import every_row
from undertow.nn.attention import AttentionInputs, AttentionProjections
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenTokens:
    """A probe for `Engine.probes` that replaces what cross-attentions return within a box, for rows with a prompt: by
    what they would return if these tokens were not there. Nothing of it reaches cells outside the box but by what is
    drawn inside, and nothing reaches other rows.

    hidden: from what a context's tokens say to the places that are hidden. box: left, top, right and bottom, as
    fractions of the picture. rows: which concern it. refiner: the network of the last steps, from which they are hidden
    as well. Errors while drawing: `InvalidInput`, also for pictures that are seen in several windows.
    """

    unet: UNet
    refiner: UNet | None = None
    hidden: Callable[[Reading], Collection[int]]
    box: tuple[float, float, float, float]
    choice: AttentionChoice = AttentionChoice()
    rows: Callable[[Origin], bool] = every_row

    def wants(self, rows: Sequence[Row]) -> bool:
        return rows[0].unet in (self.unet, self.refiner) and any(self._concerns(row) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        """Errors: `InvalidInput`."""
        height, width = rows[0].latents.shape[2:]
        places = {index: self._places(row) for index, row in enumerate(rows) if self._concerns(row)}
        if unet is self.unet:
            self.choice.require_cross(unet, (height, width))
        sites = self.choice.cross_attentions(unet, (height, width))
        handles = [
            unet.get_submodule(site).register_forward_hook(self._hook(unet.config.grid_of(site, height, width), places))
            for site in sites
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _concerns(self, row: Row) -> bool:
        return row.reading is not None and is_seen(row, self.choice, "conditional", self.rows)

    def _places(self, row: Row) -> list[int]:
        assert row.reading is not None
        if row.layout is not None and len(row.layout.windows) > 1:
            raise InvalidInput("views", f"{len(row.layout.windows)} windows", "none: boxes are of the whole picture")
        return sorted(self.hidden(row.reading))

    def _hook(self, grid: tuple[int, int], places: dict[int, list[int]]):
        inside = box_mask(self.box, grid).flatten() > 0

        def replaced(layer: nn.Module, inputs: tuple[Tensor, AttentionInputs], output: Tensor) -> Tensor:
            assert isinstance(layer, AttentionProjections)
            x, given = inputs
            assert given.context is not None  # the layer has attended to it
            seen = torch.ones(len(x), 1, x.shape[1], given.context.shape[1], dtype=torch.bool, device=x.device)
            within = inside.to(x.device)
            for row, hidden in places.items():
                seen[row, 0, :, hidden] = ~within[:, None]
            instead = layer.attend(x, replace(given, mask=seen if given.mask is None else seen & given.mask))
            rows = torch.zeros(len(x), 1, 1, dtype=torch.bool, device=x.device)
            rows[list(places)] = True
            return torch.where(rows & within[:, None], instead, output)

        return replaced
