"""Which attention a map is averaged from: layers by name or size, heads, steps."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from undertow.doors import nearest
from undertow.engine.rows import Row
from undertow.errors import InvalidInput
from undertow.nn.attention import AttentionProjections
from undertow.unet.unet import UNet

GuidanceSide = Literal["conditional", "unconditional"]
"""Of the rows with the prompt, or with the negative prompt."""


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
                raise InvalidInput(name, "none", "at least one, or None for all")
        for name in ("heads", "steps"):
            if any(one < 0 for one in getattr(self, name) or ()):
                raise InvalidInput(name, getattr(self, name), "counted from 0")

    def cross_attentions(self, unet: UNet, latents: tuple[int, int]) -> list[str]:
        """The chosen cross-attentions for latents of this size. Errors: `InvalidInput` where nothing is left, and for
        heads that a layer lacks."""
        sites = list(unet.config.cross_attentions())
        if not sites:
            raise InvalidInput("model", "without text", "one whose U-Net attends to a prompt", "pixel models have none")
        return self._chosen(unet, sites, latents)

    def self_attentions(self, unet: UNet, latents: tuple[int, int]) -> list[str]:
        """As `cross_attentions`."""
        sites = unet.config.self_attentions()
        if not sites:
            raise InvalidInput("model", "without self-attention", "one whose U-Net has some")
        return self._chosen(unet, sites, latents)

    def _chosen(self, unet: UNet, sites: Sequence[str], latents: tuple[int, int]) -> list[str]:
        for pattern in self.layers or ():
            if not any(_matches(site, pattern) for site in sites):
                known = sorted({part for site in sites for part in (site, site.partition(".attentions")[0])})
                raise InvalidInput(
                    "layers", repr(pattern), "a pattern that matches an attention", nearest(pattern, known)
                )
        named = [site for site in sites if self.layers is None or any(_matches(site, one) for one in self.layers)]
        sides = {site: min(unet.config.grid_of(site, *latents)) for site in named}
        found = [site for site, side in sides.items() if self.cells is None or side in self.cells]
        if not found:
            there = ", ".join(map(str, sorted(set(sides.values()))))
            raise InvalidInput("cells", ", ".join(map(str, self.cells or ())), f"sizes of these layers' maps: {there}")
        for site in found if self.heads is not None else ():
            layer = unet.get_submodule(site)
            assert isinstance(layer, AttentionProjections)
            if self.heads is not None and max(self.heads) >= layer.heads:
                raise InvalidInput("heads", max(self.heads), f"0 to {layer.heads - 1}: {site} has {layer.heads}")
        return found


def is_seen(row: Row, choice: AttentionChoice, side: GuidanceSide, requests: Collection[int] | None) -> bool:
    """Whether a row is one of those that are averaged. Rows that guidance perturbs are not. requests: numbers; `None`
    for all."""
    origin = row.origin
    if requests is not None and origin.request not in requests:
        return False
    if choice.steps is not None and origin.step not in choice.steps:
        return False
    prompted = origin.branch.startswith(("cond", "region")) or not origin.branch
    return row.perturbation is None and prompted == (side == "conditional")


def _matches(site: str, pattern: str) -> bool:
    return fnmatchcase(site, pattern) or fnmatchcase(site, f"{pattern}.*")
