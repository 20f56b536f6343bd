"""The parts of a request that have parts themselves: regions, a second pass, overlapping views."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from undertow.adapters.adapter import Adapter
from undertow.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Region:
    """A prompt for part of the picture. box: left, top, right, bottom, as fractions of the picture. weight: beside
    other regions and the request's own prompt where they overlap. adapters: act in this region, beside the request's
    own. Errors: `InvalidInput`, also for an empty box."""

    prompt: str
    box: tuple[float, float, float, float]
    weight: float = 1.0
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InvalidInput(
                "region.box",
                self.box,
                "left < right and top < bottom, all from 0 to 1",
                "(0, 0, 0.5, 1) is the left half",
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InvalidInput("region.weight", self.weight, "a positive number", "leave the region out instead")


@dataclass(frozen=True, kw_only=True)
class HighResolution:
    """A second pass over an enlarged picture (A1111's "hires fix"). scale: of both sides. strength: how much the second
    pass may change. steps: of its grid; the request's own when `None`. upscale: "latent" enlarges latents bilinearly,
    "pixels" decodes, enlarges by Lanczos and encodes again. Errors: `InvalidInput`."""

    scale: float = 2.0
    strength: float = 0.6
    steps: int | None = None
    upscale: Literal["latent", "pixels"] = "pixels"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 1):
            raise InvalidInput("high_resolution.scale", self.scale, "a number above 1")
        require_strength("high_resolution.strength", self.strength)
        if self.steps is not None and self.steps < 1:
            raise InvalidInput("high_resolution.steps", self.steps, "at least 1")
        if self.upscale not in ("latent", "pixels"):
            raise InvalidInput("high_resolution.upscale", repr(self.upscale), "'latent' or 'pixels'")


@dataclass(frozen=True, kw_only=True)
class Views:
    """Diffusion beyond the training size: the network sees overlapping windows, whose estimates are averaged at every
    step (MultiDiffusion, arXiv:2302.08113, eq. 5). window: side in pixels, the model's own when `None`. overlap: share
    of the window that neighbors have in common. Errors: `InvalidInput`."""

    window: int | None = None
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InvalidInput("views.window", self.window, "a number of pixels")
        if not 0 <= self.overlap < 1:
            raise InvalidInput("views.overlap", self.overlap, "from 0 to below 1", "a half is usual")


Part = Region | HighResolution | Views


def part_from_json(cls: type[Part], json: Mapping[str, Any]) -> Any:
    """A part from the fields that `dataclasses.asdict` gave. Errors: `InvalidInput` for others."""
    known = {field.name for field in fields(cls)}
    if unknown := sorted(json.keys() - known):
        raise InvalidInput(cls.__name__, unknown, f"the fields {', '.join(sorted(known))}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in json.items()}
    return cls(**values)


def require_strength(name: str, strength: float) -> None:
    """Errors: `InvalidInput` unless it lies in [0, 1]."""
    if not 0 <= strength <= 1:
        raise InvalidInput(name, strength, "from 0 (keep the picture) to 1 (keep nothing)")
