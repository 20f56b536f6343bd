"""Whole blocks that a U-Net can do without, so that what is left is an architecture that diffusers has.

A layer of a level (a ResBlock and its transformer) leaves from the encoder and from the decoder at once, since the
decoder has one more of them; the two need not be those of one skip connection (BK-SDM, arXiv:2305.15798, section 3.1,
keeps the first and the last of the decoder). A transformer block leaves alone where others stay beside it, and the
middle loses its attention together with the ResBlock behind it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from undertow.errors import ConfigError
from undertow.shapes import AnyTensor
from undertow.training.pruning.spaces import Spaces
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.diffusers_config import config_to_diffusers
from undertow.unet.unet import UNet

Rename = Callable[[str], str | None]
"""The name of a tensor after a removal; `None` for one that leaves."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A block that can leave. title: in words. config: the architecture without it. rename: see `Rename`."""

    title: str
    config: UNetConfig
    rename: Rename

    def apply(self, unet: UNet) -> UNet:
        """A U-Net without the block, with copies of all other weights."""
        left = UNet(self.config).to(device=unet.device, dtype=unet.dtype)
        left.load_state_dict(_renamed(unet.state_dict(), self.rename))
        return left


def removals(config: UNetConfig) -> list[Removal]:
    """Every block that can leave, alone. Those that would leave shapes that do not fit each other, or an architecture
    that diffusers does not have, are not among them."""
    return [one for one in (*_layers(config), *_transformer_blocks(config), *_middle(config)) if _fits(config, one)]


def most_removals(config: UNetConfig) -> int:
    """How many blocks can leave one after the other."""
    count = 0
    while found := removals(config):
        config, count = found[0].config, count + 1
    return count


def _renamed(tensors: Mapping[str, AnyTensor], rename: Rename) -> dict[str, AnyTensor]:
    names = {name: rename(name) for name in tensors}
    return {new: tensors[name] for name, new in names.items() if new is not None}


@lru_cache(maxsize=256)
def _sizes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    return Spaces(config).sizes()


def _fits(before: UNetConfig, removal: Removal) -> bool:
    try:
        config_to_diffusers(removal.config)
    except ConfigError:
        return False
    kept = {removal.rename(name): shape for name, shape in _sizes(before).items()}
    kept.pop(None, None)
    return kept == _sizes(removal.config)


def _layers(config: UNetConfig) -> Iterator[Removal]:
    last = len(config.levels) - 1
    for index, level in enumerate(config.levels):
        for encoder in range(level.resnets if level.resnets > 1 else 0):
            for decoder in range(level.resnets + 1):
                yield Removal(
                    title=f"layer {encoder} of down_blocks.{index} and layer {decoder} of up_blocks.{last - index}",
                    config=_with_level(config, index, _without_layer(level, encoder, decoder)),
                    rename=_both(
                        _shifted(f"down_blocks.{index}", ("resnets", "attentions"), encoder),
                        _shifted(f"up_blocks.{last - index}", ("resnets", "attentions"), decoder),
                    ),
                )


def _without_layer(level: Level, encoder: int, decoder: int) -> Level:
    attention = level.attention
    if isinstance(attention, CrossAttention):
        attention = _with_depths(
            attention, _without(level.encoder_depths(), encoder), _without(level.decoder_depths(), decoder)
        )
    return replace(level, resnets=level.resnets - 1, attention=attention)


def _transformer_blocks(config: UNetConfig) -> Iterator[Removal]:
    last = len(config.levels) - 1
    for index, level in enumerate(config.levels):
        if not isinstance(level.attention, CrossAttention):
            continue
        encoder, decoder = level.encoder_depths(), level.decoder_depths()
        for layer, depth in enumerate(encoder):
            smaller = _with_depths(level.attention, _less(encoder, layer), decoder)
            place = f"down_blocks.{index}.attentions.{layer}"
            yield from _blocks_at(config, index, replace(level, attention=smaller), place, depth)
        for layer, depth in enumerate(decoder):
            smaller = _with_depths(level.attention, encoder, _less(decoder, layer))
            place = f"up_blocks.{last - index}.attentions.{layer}"
            yield from _blocks_at(config, index, replace(level, attention=smaller), place, depth)


def _blocks_at(config: UNetConfig, index: int, smaller: Level, place: str, depth: int) -> Iterator[Removal]:
    if depth > 1:
        for block in range(depth):
            yield Removal(
                title=f"{place}.transformer_blocks.{block}",
                config=_with_level(config, index, smaller),
                rename=_shifted(place, ("transformer_blocks",), block),
            )


def _middle(config: UNetConfig) -> Iterator[Removal]:
    if config.middle.attention is not None and config.context_dim is not None and _text_elsewhere(config):
        gone = ("mid_block.attentions.", "mid_block.resnets.1.")
        yield Removal(
            title="mid_block.attentions.0 and mid_block.resnets.1",
            config=replace(config, middle=Middle(resnets=1)),
            rename=lambda name: None if name.startswith(gone) else name,
        )


def _text_elsewhere(config: UNetConfig) -> bool:
    return any(isinstance(level.attention, CrossAttention) for level in config.levels)


def _with_level(config: UNetConfig, index: int, level: Level) -> UNetConfig:
    return replace(config, levels=(*config.levels[:index], level, *config.levels[index + 1 :]))


def _with_depths(attention: CrossAttention, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> CrossAttention:
    """As short as the record has it: one number where all are the same."""
    depth = encoder[0] if len(set(encoder)) == 1 else encoder
    same = len(set(decoder)) == 1
    if same and decoder[0] == depth:
        return replace(attention, depth=depth, decoder_depth=None)
    return replace(attention, depth=depth, decoder_depth=decoder[0] if same else decoder)


def _without(values: tuple[int, ...], index: int) -> tuple[int, ...]:
    return values[:index] + values[index + 1 :]


def _less(values: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*values[:index], values[index] - 1, *values[index + 1 :])


def _shifted(place: str, lists: tuple[str, ...], index: int) -> Rename:
    """Without one member of the lists of modules at a place; those behind it move up."""

    def rename(name: str) -> str | None:
        for prefix in (f"{place}.{one}." for one in lists):
            if name.startswith(prefix):
                number, _, rest = name.removeprefix(prefix).partition(".")
                moved = int(number) - (int(number) > index)
                return None if int(number) == index else f"{prefix}{moved}.{rest}"
        return name

    return rename


def _both(first: Rename, second: Rename) -> Rename:
    def rename(name: str) -> str | None:
        new = first(name)
        return None if new is None else second(new)

    return rename
