"""What adapters do in one row of a batch: which low-rank changes act, which control networks, which pictures."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from undertow.adapters.control.controlnet import ControlNet
from undertow.unet.conditioning import Residuals

Area = Float[Tensor, "1 1 rows columns"]
"""How strongly each cell of the latents takes part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlRow:
    """A ControlNet that reads the row's latents. hint: embedded. gains: of its `points`. area: everywhere if `None`."""

    network: ControlNet
    hint: Float[Tensor, "1 channels height width"]
    gains: tuple[float, ...]
    area: Area | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRow:
    """Residuals that do not depend on the latents (T2I-Adapter). gains: of `running` in its order, then of `middle`."""

    features: Residuals
    gains: tuple[float, ...]
    area: Area | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePromptTokens:
    """A reference picture at one cross-attention. area: weight of every cell that looks; all alike if `None`."""

    keys: Float[Tensor, "1 tokens dim"]
    values: Float[Tensor, "1 tokens dim"]
    gain: float
    area: Float[Tensor, "1 queries"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePromptRow:
    """A reference picture, or several that are attended to as one. sites: by cross-attention, those where it acts."""

    sites: Mapping[str, ImagePromptTokens]


SideInput = ControlRow | FeatureRow | ImagePromptRow
"""What acts beside the U-Net's weights."""
