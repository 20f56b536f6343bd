"""Narrower architectures of the same structure: fewer normalization groups of the same sizes, and what follows from it.

diffusers' configs express no width of an attention or a feed-forward layer apart from its level's: heads times their
width are the level's channels, the feed-forward layer has four times as many, and all levels have the same number of
normalization groups. So all of them shrink together, each by members of its own.
"""

from dataclasses import replace
from fractions import Fraction

from undertow.errors import ConfigError, InvalidInput
from undertow.unet.config import CrossAttention, Level, SelfAttention, UNetConfig
from undertow.unet.diffusers_config import config_to_diffusers

Attention = CrossAttention | SelfAttention | None


def narrowed(config: UNetConfig, groups: int) -> UNetConfig:
    """The architecture with this many normalization groups, whose sizes stay. Widths that were given beside the levels'
    (`time_dim`, `sinusoid_dim`) stay too, as do heads where the width allows: otherwise heads become fewer, and
    narrower where whole ones do not fit. Errors: `ConfigError` for a width that no number of heads divides."""
    levels = tuple(_narrow(level, config.norm_groups, groups) for level in config.levels)
    inside = _heads(config.middle.attention, config.levels[-1].channels, levels[-1].channels)
    middle = replace(config.middle, attention=inside)
    return replace(config, levels=levels, middle=middle, norm_groups=groups)


def _narrow(level: Level, before: int, after: int) -> Level:
    channels = level.channels // before * after
    return replace(level, channels=channels, attention=_heads(level.attention, level.channels, channels))


def _heads(attention: Attention, before: int, after: int) -> Attention:
    """As few heads as keep the most of their width: whole ones if they fit."""
    if attention is None:
        return None
    width = before // attention.heads
    fitting = (heads for heads in range(-(-after // width), attention.heads + 1) if after % heads == 0)
    heads = next(fitting, None)
    if heads is None:
        rule = f"{after} channels are no {attention.heads} heads or fewer of at most {width} channels"
        raise ConfigError("attention.heads", attention.heads, rule)
    return replace(attention, heads=heads)


def possible_groups(config: UNetConfig) -> list[int]:
    """Numbers of normalization groups below the config's, from the most, with which a narrower U-Net exists that
    diffusers loads."""
    return [groups for groups in range(config.norm_groups - 1, 0, -1) if _exists(config, groups)]


def _exists(config: UNetConfig, groups: int) -> bool:
    try:
        config_to_diffusers(narrowed(config, groups))
    except ConfigError:
        return False
    return True


def groups_for(config: UNetConfig, width: float) -> int:
    """How many normalization groups stay of a share of the width: the most that are not more. Errors: `InvalidInput`
    for a share that leaves nothing, with the least and the largest that work."""
    possible, count = possible_groups(config), config.norm_groups
    if not possible:
        raise InvalidInput("width", width, "nothing: no narrower U-Net of this kind exists", "remove blocks instead")
    found = next((groups for groups in possible if 0 < width < 1 and groups <= Fraction(str(width)) * count), None)
    if found is None:
        low, high = (f"{groups / count:g}" for groups in (possible[-1], possible[0]))
        reason = f"of {count} normalization groups {possible[-1]} must stay, with whole heads" if width < 1 else ""
        expected = f"a share of the channels that stay, from {low} to {high}" + (f": {reason}" if reason else "")
        raise InvalidInput("width", width, expected, f"the smallest U-Net is that of {low}")
    return found
