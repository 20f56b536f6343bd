"""How far pictures are in a style, and how much of what was asked for they still show."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor

from recipes.emoji.recognize import Restyle, recognize
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import Scene
from recipes.emoji.styles import STYLES, Style, separation

Pictures = UInt8[Tensor, "count 3 side side"]

USUAL = 0.95
"""Share of the base's pictures at or below the statistic that styled ones should exceed."""


@dataclass(frozen=True, kw_only=True)
class InStyle:
    """How far pictures are in a style. mean: of its statistic. above: share over the `USUAL` quantile of the base's.
    apart: the chance that one of them has a larger statistic than one of the base's."""

    mean: float
    above: float
    apart: float


@dataclass(frozen=True, kw_only=True)
class Adherence:
    """What of the prompt pictures show. styled, plain: share whose emoji is found among references in the style, and
    among plain ones. color: share on the background asked for."""

    styled: float
    plain: float
    color: float


def in_style(style: Style, pictures: Pictures, base: Pictures) -> InStyle:
    """How far pictures are in a style, beside those of the base."""
    own, usual = style.statistic(pictures), style.statistic(base)
    return InStyle(mean=float(own.mean()), above=share_above(own, usual), apart=separation(own, usual))


def share_above(values: Float[Tensor, "styled"], usual: Float[Tensor, "plain"]) -> float:
    """Share of values over the `USUAL` quantile of others."""
    return float((values > usual.quantile(USUAL)).float().mean())


def adherence(pictures: Pictures, scenes: Sequence[Scene], glyphs: Glyphs, restyle: Restyle) -> Adherence:
    """What of their scenes pictures show. restyle: what references in the style are drawn with."""
    styled, plain = (recognize(pictures, scenes, glyphs, style=one) for one in (restyle, None))
    return Adherence(
        styled=float(styled.right.float().mean()),
        plain=float(plain.right.float().mean()),
        color=float(plain.color.float().mean()),
    )


def all_styles(
    pictures: UInt8[Tensor, "count 3 height width"], side: int | None = None
) -> UInt8[Tensor, "count 3 height width"]:
    """Every style, one after the other: lines, and these in tiles. side: of the whole pictures, of which these may be
    parts."""
    for style in STYLES.values():
        pictures = style.apply(pictures, side)
    return pictures
