"""Which attention a map is averaged from: layers by name or size, heads, steps."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.inspection.attention_sites import matches, require_cells, require_layers
from undertow.nn.attention import AttentionProjections
from undertow.unet.unet import UNet

GuidanceSide = Literal["conditional", "unconditional"]
"""Of the rows with the prompt, or with the negative prompt."""


_ARGUMENTS = {"steps": "at_steps"}
"""What a field is called where pictures are drawn, whose steps are another argument."""


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """layers: patterns of names of attention layers, with * and ?, such as "up_blocks.*" or "mid_block"; what a pattern
    matches the beginning of, up to a dot, counts as well. cells: only layers whose map has one of these as its shorter
    side. heads: of each layer, from 0. steps: from 0, over all passes. `None` is all of them."""

    layers: tuple[str, ...] | None = None
    cells: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "cells", "heads", "steps"):
            value = getattr(self, name)
            if value is not None and not value:
                raise InvalidInput(_ARGUMENTS.get(name, name), "empty", "at least one, or None for all")
        for name in ("heads", "steps"):
            if any(one < 0 for one in getattr(self, name) or ()):
                raise InvalidInput(_ARGUMENTS.get(name, name), getattr(self, name), "counted from 0")

    @classmethod
    def of(
        cls,
        *,
        layers: str | Sequence[str] | None = None,
        cells: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
    ) -> "AttentionChoice":
        """From sequences of any kind, and from one pattern alone."""
        return cls(
            layers=None if layers is None else (layers,) if isinstance(layers, str) else tuple(layers),
            cells=None if cells is None else tuple(cells),
            heads=None if heads is None else tuple(heads),
            steps=None if steps is None else tuple(steps),
        )

    def cross_attentions(self, unet: UNet, latents: tuple[int, int]) -> list[str]:
        """The chosen cross-attentions for latents of this size; none where the network lacks them."""
        return self._chosen(unet, unet.config.cross_attentions(), latents)

    def self_attentions(self, unet: UNet, latents: tuple[int, int]) -> list[str]:
        """As `cross_attentions`."""
        return self._chosen(unet, unet.config.self_attentions(), latents)

    def require_cross(self, unet: UNet, latents: tuple[int, int] | None) -> None:
        """latents: their size; `None` where requests of any size may come, which leaves `cells` open. Errors:
        `InvalidInput` for layers and heads that the network lacks, and for cells that no chosen layer has."""
        sites = list(unet.config.cross_attentions())
        if not sites:
            raise InvalidInput("model", "without text", "one whose U-Net attends to a prompt", "pixel models have none")
        self._require(unet, sites, latents)

    def require_self(self, unet: UNet, latents: tuple[int, int] | None) -> None:
        """As `require_cross`."""
        sites = unet.config.self_attentions()
        if not sites:
            raise InvalidInput("model", "without self-attention", "one whose U-Net has some")
        self._require(unet, sites, latents)

    def sides(self, unet: UNet, sites: Collection[str], latents: tuple[int, int]) -> dict[str, int]:
        """Of the layers that are chosen by name, the shorter side of each one's map."""
        named = [site for site in sites if self.layers is None or any(matches(site, one) for one in self.layers)]
        return {site: min(unet.config.grid_of(site, *latents)) for site in named}

    def _chosen(self, unet: UNet, sites: Collection[str], latents: tuple[int, int]) -> list[str]:
        most = max(self.heads or (0,))
        return [
            site
            for site, side in self.sides(unet, sites, latents).items()
            if (self.cells is None or side in self.cells) and most < _heads(unet, site)
        ]

    def _require(self, unet: UNet, sites: Collection[str], latents: tuple[int, int] | None) -> None:
        require_layers(self.layers, list(sites))
        own = unet.config.sample_size
        sides = self.sides(unet, sites, (own, own) if latents is None else latents)
        if latents is not None:
            require_cells(self.cells, sides.values())
            sides = {site: side for site, side in sides.items() if self.cells is None or side in self.cells}
        for site in sides:
            if self.heads is not None and max(self.heads) >= _heads(unet, site):
                heads = _heads(unet, site)
                raise InvalidInput("heads", max(self.heads), f"0 to {heads - 1}: {site} has {heads}")


def is_seen(row: Row, choice: AttentionChoice, side: GuidanceSide, rows: Callable[[Origin], bool]) -> bool:
    """Whether a row is one of those that are averaged. Rows that guidance perturbs are not. rows: which concern it."""
    origin = row.origin
    if not rows(origin) or (choice.steps is not None and origin.step not in choice.steps):
        return False
    prompted = origin.branch.startswith(("cond", "region")) or not origin.branch
    return row.perturbation is None and prompted == (side == "conditional")


def _heads(unet: UNet, site: str) -> int:
    layer = unet.get_submodule(site)
    assert isinstance(layer, AttentionProjections)
    return layer.heads
