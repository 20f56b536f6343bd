"""The stages of a U-Net: one class for every encoder level, one for the bottleneck, one for every decoder level.

Module names are diffusers': `resnets`, `attentions`, `downsamplers`, `upsamplers`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undertow.attention.kernel import AttentionKernel
from undertow.nn.adaptable import WeightRows
from undertow.nn.attention import AttentionInputs, SpatialSelfAttention
from undertow.nn.free_u import FreeUFactors, scale_backbone, scale_low_frequencies
from undertow.nn.resample import Downsample, Upsample
from undertow.nn.resnet import ResBlock
from undertow.nn.transformer import SpatialTransformer
from undertow.unet.config import CrossAttention, Level, SelfAttention, UNetConfig

Hidden = Float[Tensor, "batch channels height width"]
NewHidden = Float[Tensor, "batch new_channels new_height new_width"]
AnyMap = Float[Tensor, "..."]

Checkpointing = bool | tuple[str, ...]
"""Gradient checkpointing of all stages or of none, or of those with these names: "down_blocks.0", "mid_block"."""


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """What every stage receives besides the hidden activations.

    attention: the inputs of its attention layers. regions: where in the image each context token may be attended to.
    checkpointing: of which stages.
    """

    embedding: Float[Tensor, "batch dim"]
    attention: AttentionInputs
    regions: Bool[Tensor, "batch tokens rows columns"] | None = None
    free_u: Mapping[str, FreeUFactors] | None = None
    checkpointing: Checkpointing = False

    def recomputes(self, stage: str) -> bool:
        """Whether the layers of the stage of this name are computed again in the backward pass."""
        return self.checkpointing if isinstance(self.checkpointing, bool) else stage in self.checkpointing

    @property
    def weights(self) -> WeightRows | None:
        """The weight port, which convolutions and linear layers use as well."""
        return self.attention.weights

    def attention_over(self, hidden: Hidden) -> AttentionInputs:
        """The inputs of an attention layer over the cells of `hidden`, with a mask of the tokens that each cell may
        attend to."""
        if self.regions is None:
            return self.attention
        pooled = F.adaptive_max_pool2d(self.regions.to(hidden.dtype), hidden.shape[2:])
        seen = (pooled > 0).flatten(2).mT[:, None]
        mask = self.attention.mask
        return replace(self.attention, mask=seen if mask is None else seen & mask)


class Stage(nn.Module):
    """ResBlocks, each followed by an attention layer where the level has attention."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.resnets = nn.ModuleList()
        self.attentions: nn.ModuleList | None = None

    def layer(self, index: int, hidden: Hidden, inputs: StageInputs) -> NewHidden:
        """ResBlock `index` and the attention layer after it, recomputed in the backward pass when checkpointing
        (arXiv:1604.06174)."""

        def run(hidden: Hidden) -> NewHidden:
            return self._attend(index, self._resnet(index, hidden, inputs), inputs)

        return _recomputed(run, hidden) if inputs.recomputes(self.name) else run(hidden)

    def _resnet(self, index: int, hidden: Hidden, inputs: StageInputs) -> NewHidden:
        return self.resnets[index](hidden, inputs.embedding, inputs.weights)

    def _attend(self, index: int, hidden: Hidden, inputs: StageInputs) -> Hidden:
        if self.attentions is None or index >= len(self.attentions):
            return hidden
        return self.attentions[index](hidden, inputs.attention_over(hidden))


class DownStage(Stage):
    """One level of the encoder; `forward` returns the hidden activations and the skip connections that it stores, in
    order."""

    def __init__(self, config: UNetConfig, index: int, kernel: AttentionKernel):
        super().__init__(f"down_blocks.{index}")
        level = config.levels[index]
        inputs = config.levels[max(index - 1, 0)].channels
        self.resnets = nn.ModuleList(
            _res_block(config, inputs if i == 0 else level.channels, level.channels) for i in range(level.resnets)
        )
        if level.attention is not None:
            self.attentions = _attentions(config, level, level.encoder_depths(), kernel)
        last = index == len(config.levels) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(level.channels)])

    def forward(
        self, hidden: Hidden, inputs: StageInputs, running: Sequence[AnyMap | None] = ()
    ) -> tuple[AnyMap, list[AnyMap]]:
        """running: what is added to the hidden activations where each of these skip connections is stored; `None` adds
        nothing."""
        skips = []
        for index in range(len(self.resnets)):
            hidden = with_addition(self.layer(index, hidden, inputs), running, index)
            skips.append(hidden)
        if self.downsamplers is not None:
            hidden = with_addition(self.downsamplers[0](hidden, inputs.weights), running, len(skips))
            skips.append(hidden)
        return hidden, skips


class MiddleStage(Stage):
    """The bottleneck."""

    def __init__(self, config: UNetConfig, kernel: AttentionKernel):
        super().__init__("mid_block")
        channels, middle = config.levels[-1].channels, config.middle
        self.resnets = nn.ModuleList(_res_block(config, channels, channels) for _ in range(middle.resnets))
        if middle.attention is not None:
            level = Level(channels=channels, attention=middle.attention)
            self.attentions = _attentions(config, level, middle.depths(), kernel)

    def forward(self, hidden: Hidden, inputs: StageInputs) -> Hidden:
        for index in range(len(self.resnets)):
            hidden = self.layer(index, hidden, inputs)
        return hidden


class UpStage(Stage):
    """One level of the decoder, counted from the bottleneck; `forward` pops its skip connections off the end of the
    list."""

    def __init__(self, config: UNetConfig, index: int, kernel: AttentionKernel):
        super().__init__(f"up_blocks.{index}")
        levels = config.levels[::-1]
        level = levels[index]
        below = levels[max(index - 1, 0)].channels
        above = levels[min(index + 1, len(levels) - 1)].channels
        skips = [level.channels] * level.resnets + [above]
        inputs = [below] + [level.channels] * level.resnets
        self.resnets = nn.ModuleList(
            _res_block(config, hidden + skip, level.channels) for hidden, skip in zip(inputs, skips, strict=True)
        )
        if level.attention is not None:
            self.attentions = _attentions(config, level, level.decoder_depths(), kernel)
        last = index == len(levels) - 1
        self.upsamplers = None if last else nn.ModuleList([Upsample(level.channels)])
        self.names = [f"up_blocks.{index}.resnets.{layer}" for layer in range(len(self.resnets))]

    def forward(self, hidden: Hidden, skips: list[Float[Tensor, "..."]], inputs: StageInputs) -> NewHidden:
        for index in range(len(self.resnets)):
            skip = skips.pop()
            if inputs.free_u is not None and self.names[index] in inputs.free_u:
                factors = inputs.free_u[self.names[index]]
                hidden, skip = scale_backbone(hidden, factors), scale_low_frequencies(skip, factors)
            hidden = torch.cat((hidden, skip), dim=1)
            del skip
            if inputs.recomputes(self.name):
                hidden = self.layer(index, hidden, inputs)
            else:  # in two steps, so that what was joined is gone before the attention layer
                hidden = self._resnet(index, hidden, inputs)
                hidden = self._attend(index, hidden, inputs)
        if self.upsamplers is not None:
            hidden = self.upsamplers[0](hidden, skips[-1].shape[2:], inputs.weights)
        return hidden


def with_addition(hidden: AnyMap, additions: Sequence[AnyMap | None], index: int) -> AnyMap:
    """`hidden`, plus the addition at `index` if there is one."""
    addition = additions[index] if index < len(additions) else None
    return hidden if addition is None else hidden + addition


def _res_block(config: UNetConfig, inputs: int, outputs: int) -> ResBlock:
    return ResBlock(
        inputs,
        outputs,
        config.embedding_dim,
        norm_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )


def _attentions(config: UNetConfig, level: Level, depths: tuple[int, ...], kernel: AttentionKernel) -> nn.ModuleList:
    def build(depth: int) -> SpatialTransformer | SpatialSelfAttention:
        match level.attention:
            case CrossAttention(heads=heads) if config.context_dim is not None:
                return SpatialTransformer(
                    level.channels,
                    heads,
                    depth,
                    config.context_dim,
                    norm_groups=config.norm_groups,
                    linear_projection=config.linear_projection,
                    kernel=kernel,
                )
            case SelfAttention(heads=heads):
                return SpatialSelfAttention(
                    level.channels, heads, norm_groups=config.norm_groups, norm_eps=config.norm_eps, kernel=kernel
                )
            case kind:
                raise AssertionError(f"validated config has no attention {kind!r}")

    return nn.ModuleList(build(depth) for depth in depths)


def _recomputed(run: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    output = checkpoint(run, hidden, use_reentrant=False)
    assert isinstance(output, Tensor)
    return output
