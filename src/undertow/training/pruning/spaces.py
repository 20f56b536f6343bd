"""Which channels of a U-Net's tensors belong together: channel spaces, and those along the axes of each tensor.

A channel space is a set of channels that several tensors write and read, such as the residual stream of a level, which
goes through its ResBlocks and transformers, over the downsampling convolution and, as a skip connection, into the
decoder. A channel can leave only from all of them (the dependency graph of DepGraph, arXiv:2301.12900, which the
structure of a U-Net gives without tracing). Tensors are named as in diffusers.
"""

from dataclasses import dataclass, field

from undertow.errors import ConfigError
from undertow.unet.config import ClassLabels, CrossAttention, SelfAttention, TextTime, UNetConfig

Axis = tuple[str, ...]
"""Names of the spaces along one axis, one after the other; none where the axis is not pruned."""

WHOLE: Axis = ()
EMBEDDING = "time_embedding.outputs"
QUERIES, VALUES = "queries", "values"
"""Spaces inside an attention, which both are its heads: what is compared, and what is handed on."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """size: channels. unit: neighbors that stay together, as a GroupNorm normalizes them. heads: of an attention, the
    number of equal parts in which its channels lie."""

    size: int
    unit: int = 1
    heads: int | None = None


@dataclass
class Spaces:
    """The channel spaces of an architecture by name, and the axes of its tensors by theirs. A tensor that is not there
    has no axis that can be pruned. Errors: `ConfigError` for a network that takes guidance as an input."""

    config: UNetConfig
    spaces: dict[str, Space] = field(default_factory=dict)
    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)

    def __post_init__(self):
        if self.config.guidance_dim is not None:
            rule = "must be None: a network that takes guidance as an input is pruned before it is distilled so"
            raise ConfigError("guidance_dim", self.config.guidance_dim, rule)
        self._embeddings()
        stream, skips = self._encoder()
        self._middle(stream)
        stream = self._decoder(stream, skips)
        self._norm("conv_norm_out", (stream,))
        self._layer("conv_out", WHOLE, (stream,))

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Channels along every axis of every tensor, by its name; 0 along those that are not pruned."""
        return {
            name: tuple(sum(self.spaces[one].size for one in axis) for axis in axes) for name, axes in self.axes.items()
        }

    def stream(self, name: str, channels: int) -> str:
        """A space of feature maps, which GroupNorm normalizes."""
        return self._space(name, Space(size=channels, unit=channels // self.config.norm_groups))

    def _space(self, name: str, space: Space) -> str:
        self.spaces[name] = space
        return name

    def _layer(self, name: str, outputs: Axis, inputs: Axis, *, bias: bool = True) -> None:
        self.axes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self.axes[f"{name}.bias"] = (outputs,)

    def _norm(self, name: str, channels: Axis) -> None:
        self.axes[f"{name}.weight"] = self.axes[f"{name}.bias"] = (channels,)

    def _embeddings(self) -> None:
        width = self.config.embedding_dim
        self._space(EMBEDDING, Space(size=width))
        self._embedding("time_embedding", width)
        match self.config.added:
            case TextTime():
                self._embedding("add_embedding", width)
            case ClassLabels():
                self.axes["class_embedding.weight"] = (WHOLE, (EMBEDDING,))
            case None:
                pass

    def _embedding(self, name: str, width: int) -> None:
        hidden = self._space(f"{name}.hidden", Space(size=width))
        self._layer(f"{name}.linear_1", (hidden,), WHOLE)
        self._layer(f"{name}.linear_2", (EMBEDDING,), (hidden,))

    def _encoder(self) -> tuple[str, list[str]]:
        levels = self.config.levels
        stream = self.stream("conv_in", levels[0].channels)
        self._layer("conv_in", (stream,), WHOLE)
        skips = [stream]
        for index, level in enumerate(levels):
            block = f"down_blocks.{index}"
            for layer in range(level.resnets):
                stream = self._resnet(f"{block}.resnets.{layer}", (stream,), level.channels)
                self._attention(f"{block}.attentions.{layer}", level.attention, level.encoder_depths()[layer], stream)
                skips.append(stream)
            if index < len(levels) - 1:
                stream = self._resampled(f"{block}.downsamplers.0.conv", stream)
                skips.append(stream)
        return stream, skips

    def _middle(self, stream: str) -> None:
        middle, channels = self.config.middle, self.spaces[stream].size
        self._resnet("mid_block.resnets.0", (stream,), channels)
        for index, depth in enumerate(middle.depths()):
            self._attention(f"mid_block.attentions.{index}", middle.attention, depth, stream)
            self._resnet(f"mid_block.resnets.{index + 1}", (stream,), channels)

    def _decoder(self, stream: str, skips: list[str]) -> str:
        levels = self.config.levels[::-1]
        for index, level in enumerate(levels):
            block = f"up_blocks.{index}"
            for layer, depth in enumerate(level.decoder_depths()):
                stream = self._resnet(f"{block}.resnets.{layer}", (stream, skips.pop()), level.channels)
                self._attention(f"{block}.attentions.{layer}", level.attention, depth, stream)
            if index < len(levels) - 1:
                stream = self._resampled(f"{block}.upsamplers.0.conv", stream)
        return stream

    def _resampled(self, name: str, stream: str) -> str:
        outputs = self.stream(name, self.spaces[stream].size)
        self._layer(name, (outputs,), (stream,))
        return outputs

    def _resnet(self, name: str, inputs: Axis, channels: int) -> str:
        """Returns the space of the outputs: that of the inputs, where these are added to it unchanged."""
        unchanged = sum(self.spaces[one].size for one in inputs) == channels
        outputs = inputs[0] if unchanged else self.stream(name, channels)
        hidden = self.stream(f"{name}.hidden", channels)
        self._norm(f"{name}.norm1", inputs)
        self._layer(f"{name}.conv1", (hidden,), inputs)
        self._layer(f"{name}.time_emb_proj", (hidden,), (EMBEDDING,))
        self._norm(f"{name}.norm2", (hidden,))
        self._layer(f"{name}.conv2", (outputs,), (hidden,))
        if not unchanged:
            self._layer(f"{name}.conv_shortcut", (outputs,), inputs)
        return outputs

    def _attention(self, name: str, kind: CrossAttention | SelfAttention | None, depth: int, stream: str) -> None:
        match kind:
            case CrossAttention(heads=heads):
                self._transformer(name, heads, depth, stream)
            case SelfAttention(heads=heads):
                self._norm(f"{name}.group_norm", (stream,))
                self._projections(name, heads, stream, (stream,), bias=True)
            case None:
                pass

    def _transformer(self, name: str, heads: int, depth: int, stream: str) -> None:
        width = self.spaces[stream].size
        tokens = self._space(f"{name}.tokens", Space(size=width))
        self._norm(f"{name}.norm", (stream,))
        self._layer(f"{name}.proj_in", (tokens,), (stream,))
        for index in range(depth):
            block = f"{name}.transformer_blocks.{index}"
            for norm in ("norm1", "norm2", "norm3"):
                self._norm(f"{block}.{norm}", (tokens,))
            self._projections(f"{block}.attn1", heads, tokens, (tokens,), bias=False)
            self._projections(f"{block}.attn2", heads, tokens, WHOLE, bias=False)
            inner = self._space(f"{block}.ff", Space(size=4 * width))
            self._layer(f"{block}.ff.net.0.proj", (inner, inner), (tokens,))  # value and gate, side by side
            self._layer(f"{block}.ff.net.2", (tokens,), (inner,))
        self._layer(f"{name}.proj_out", (stream,), (tokens,))

    def _projections(self, name: str, heads: int, stream: str, source: Axis, *, bias: bool) -> None:
        """source: of keys and values; `WHOLE` for the text."""
        width = self.spaces[stream].size
        queries, values = (self._space(f"{name}.{part}", Space(size=width, heads=heads)) for part in (QUERIES, VALUES))
        self._layer(f"{name}.to_q", (queries,), (stream,), bias=bias)
        self._layer(f"{name}.to_k", (queries,), source, bias=bias)
        self._layer(f"{name}.to_v", (values,), source, bias=bias)
        self._layer(f"{name}.to_out.0", (stream,), (values,))
