"""A U-Net's forward on stand-ins. Names and order are those of `unet/` and `nn/`, so that the same things live at the
same time."""

from collections.abc import Collection
from dataclasses import dataclass

from undertow.memory.attention_walk import attend
from undertow.memory.ledger import Array, Ledger
from undertow.memory.operations import Operations
from undertow.memory.work import TrainingWork
from undertow.unet.config import ClassLabels, CrossAttention, SelfAttention, TextTime, UNetConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """The stages of one U-Net. context: the text of every row. others: more inputs, which live as long. image_tokens:
    of each picture that acts (IP-Adapter). chunks: parts in which feed-forward layers are computed. training: says
    which layers are recomputed in the backward pass; `None` without one."""

    config: UNetConfig
    ops: Operations
    context: Array | None
    embedding: Array
    others: tuple[Array, ...] = ()
    image_tokens: int = 0
    chunks: int = 1
    training: TrainingWork | None = None

    def recomputes(self, block: str) -> bool:
        return self.training is not None and self.training.recomputes(block)

    @property
    def ledger(self) -> Ledger:
        return self.ops.ledger

    def res_block(self, x: Array, outputs: int, embedding: Array | None, groups: int) -> Array:
        with self.ledger.at(self.ledger.module, "convolutions"):
            return res_block(self.ops, x, outputs, embedding, groups)

    def attend(self, x: Array, kind: CrossAttention | SelfAttention, depth: int) -> Array:
        """A layer of attention over a map."""
        match kind:
            case CrossAttention(heads=heads):
                return self._transformer(x, heads, depth)
            case SelfAttention(heads=heads):
                with self.ledger.at(self.ledger.module, "self_attention"):
                    return spatial_self_attention(self.ops, x, heads, self.config.norm_groups)

    def _transformer(self, x: Array, heads: int, depth: int) -> Array:
        module, ops = self.ledger.module, self.ops
        rows, channels, height, width = x.shape
        with self.ledger.at(module, "transformer"):
            tokens = self._enter(x)
            # Equal blocks take the same one after the other, unless each keeps something for a backward pass.
            walked = 1 if self.ops.saved is None else depth
            with self.ledger.repeated(depth // walked):
                for index in range(walked):
                    tokens = self._block(f"{module}.transformer_blocks.{index}", tokens, heads)
            with self.ledger.at(f"{module}.proj_out"):
                out = self._project(tokens)
            return ops.elementwise("add", out.view(rows, channels, height, width), x)

    def _enter(self, x: Array) -> Array:
        rows, channels, height, width = x.shape
        hidden = self.ops.group_norm(x, self.config.norm_groups)
        return self._project(hidden.view(rows, height * width, channels))

    def _project(self, tokens: Array) -> Array:
        """A linear layer, or a 1x1 convolution, which over channels-last memory is the same, and not with slots."""
        rows, cells, channels = tokens.shape
        if self.config.linear_projection:
            return self.ops.linear(tokens, channels)
        return self.ops.conv(tokens.view(rows, channels, cells, 1), channels, 1).view(rows, cells, channels)

    def _block(self, name: str, x: Array, heads: int) -> Array:
        ops, at = self.ops, self.ledger.at
        with at(f"{name}.attn1", "self_attention"):
            first = self._added(x, self._attention(ops.layer_norm(x), None, heads))
        with at(f"{name}.attn2", "cross_attention"):
            second = self._added(first, self._attention(ops.layer_norm(first), self.context, heads))
        del first
        with at(f"{name}.ff", "feed_forward"):
            return self._added(second, self._feed_forward(ops.layer_norm(second)))

    def _added(self, x: Array, change: Array) -> Array:
        return self.ops.elementwise("add", x, change)

    def _attention(self, x: Array, context: Array | None, heads: int) -> Array:
        ops = self.ops
        source = x if context is None else context
        query = ops.linear(x, x.shape[-1])
        key, value = (ops.linear(source, x.shape[-1]) for _ in range(2))
        output = attend(ops, query, key, value, heads)
        if context is not None and self.image_tokens:
            output = self._with_image(output, query, heads)
        return ops.linear(output, x.shape[-1])

    def _with_image(self, output: Array, query: Array, heads: int) -> Array:
        """What a picture's tokens add, whose keys and values exist already."""
        rows, _, width = query.shape
        keys = Array((rows, self.image_tokens, width), query.buffer, query.item)
        seen = attend(self.ops, query, keys, keys, heads)
        scaled = self.ops.elementwise("mul", seen)
        return self.ops.elementwise("add", output, scaled)

    def _feed_forward(self, x: Array) -> Array:
        if self.chunks == 1:
            return self._gated(x)
        cells = x.shape[1]
        size = -(-cells // self.chunks)
        parts = [self._part(x, min(size, cells - start)) for start in range(0, cells, size)]
        return self.ops.elementwise("cat", x, *parts)

    def _part(self, x: Array, size: int) -> Array:
        """Of the tokens, copied where those of several rows are taken out."""
        rows, _, channels = x.shape
        shape = (rows, size, channels)
        with self.ledger.held(*([shape] if rows > 1 else [])):
            return self._gated(x.view(*shape))

    def _gated(self, x: Array) -> Array:
        gated = self._geglu(x)
        with self.ledger.at(f"{self.ledger.module}.net.2"):
            return self.ops.linear(gated, x.shape[-1])

    def _geglu(self, x: Array) -> Array:
        inner = 4 * x.shape[-1]
        with self.ledger.at(f"{self.ledger.module}.net.0"):
            both = self.ops.linear(x, 2 * inner)
            shape = (*both.shape[:-1], inner)
            gate = self.ops.elementwise("gelu", both, shape=shape)
            return self.ops.elementwise("mul", gate, both)


def res_block(ops: Operations, x: Array, outputs: int, embedding: Array | None, groups: int) -> Array:
    """`nn.resnet.ResBlock`."""
    hidden = ops.conv(_norm_silu(ops, x, groups), outputs)
    if embedding is not None:
        shift = ops.linear(embedding, outputs)
        hidden = ops.elementwise("add", hidden, shift)
        del shift
    hidden = ops.conv(_norm_silu(ops, hidden, groups), outputs)
    return ops.elementwise("add", hidden, x if x.shape[1] == outputs else ops.conv(x, outputs, 1))


def _norm_silu(ops: Operations, x: Array, groups: int) -> Array:
    return ops.elementwise("silu", ops.group_norm(x, groups))


def spatial_self_attention(ops: Operations, x: Array, heads: int, groups: int, *, copied: bool = False) -> Array:
    """`nn.attention.SpatialSelfAttention`. copied: the channels of x do not come last in memory."""
    rows, channels, height, width = x.shape
    tokens = ops.group_norm(x, groups).view(rows, height * width, channels)
    query, key, value = (ops.linear(tokens, channels, copied=copied) for _ in range(3))
    output = ops.linear(attend(ops, query, key, value, heads), channels)
    return ops.elementwise("add", x, output)


def time_embedding(ops: Operations, config: UNetConfig, rows: int) -> Array:
    """`Encoder.embed`, after its SiLU."""
    with ops.ledger.at("time_embedding", "embeddings"):
        sinusoid = ops.ledger.new((rows, config.timestep_sinusoid_dim), "cat")
        embedding = _mlp(ops, sinusoid, config.embedding_dim)
    match config.added:
        case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim):
            with ops.ledger.at("add_embedding", "embeddings"):
                both = ops.ledger.new((rows, pooled + ids * dim), "cat")
                embedding = ops.elementwise("add", embedding, _mlp(ops, both, config.embedding_dim))
        case ClassLabels():
            with ops.ledger.at("class_embedding", "embeddings"):
                embedding = ops.elementwise("add", embedding)
        case None:
            pass
    with ops.ledger.at("time_embedding", "embeddings"):
        return ops.elementwise("silu", embedding)


def _mlp(ops: Operations, x: Array, width: int) -> Array:
    return ops.linear(ops.elementwise("silu", ops.linear(x, width)), width)


def running_places(config: UNetConfig) -> list[int]:
    """The skip connections at which a T2I-Adapter adds to the activations: `t2i.injections`."""
    found, stored, last = list[int](), 0, len(config.levels) - 1
    for index, level in enumerate(config.levels):
        stored += level.resnets
        found.append(stored + (index < last and level.attention is None))
        stored += index < last
    return found


def encode(stages: Stages, latents: Array, *, added: Collection[int] = ()) -> tuple[Array, list[Array]]:
    """`Encoder.encode`: what leaves the lowest level, and the skip connections. added: of these, those at which a hint
    or a T2I-Adapter adds to the activations."""
    config, ops, at = stages.config, stages.ops, stages.ledger.at
    with at("conv_in", "convolutions", 0):
        hidden = ops.conv(latents, config.levels[0].channels)
        hidden = _added_at(ops, hidden, 0, added)
    skips = [_stored(hidden)]
    for index, level in enumerate(config.levels):
        block_input = hidden
        for layer, depth in enumerate(level.encoder_depths()):
            hidden = _layer(
                stages, f"down_blocks.{index}", layer, index, hidden, level.channels, level.attention, depth
            )
            hidden = _added_at(ops, hidden, len(skips), added)
            skips.append(_stored(hidden))
        if index < len(config.levels) - 1:
            with at(f"down_blocks.{index}.downsamplers.0", "convolutions", index + 1):
                hidden = ops.conv(hidden, level.channels, stride=2)
                hidden = _added_at(ops, hidden, len(skips), added)
            skips.append(_stored(hidden))
        del block_input
    return hidden, skips


def _added_at(ops: Operations, hidden: Array, place: int, added: Collection[int]) -> Array:
    return ops.elementwise("add", hidden) if place in added else hidden


def middle(stages: Stages, hidden: Array) -> Array:
    """`MiddleStage.forward`."""
    config = stages.config
    level, channels = len(config.levels) - 1, config.levels[-1].channels
    block_input = hidden
    depths = (*config.middle.depths(), 0)
    for layer, depth in zip(range(config.middle.resnets), depths, strict=True):
        kind = config.middle.attention if layer < config.middle.resnets - 1 else None
        hidden = _layer(stages, "mid_block", layer, level, hidden, channels, kind, depth)
    del block_input
    return hidden


def decode(stages: Stages, hidden: Array, skips: list[Array]) -> Array:
    """`UNet._decode`, which empties `skips`."""
    config, ops, at = stages.config, stages.ops, stages.ledger.at
    for index in range(len(config.levels)):
        here = len(config.levels) - 1 - index
        hidden = _up_block(stages, index, here, hidden, skips)
    with at("conv_out", "convolutions", 0):
        normed = _norm_silu(ops, hidden, config.norm_groups)
        return ops.conv(normed, config.out_channels)


def _up_block(stages: Stages, index: int, here: int, block_input: Array, skips: list[Array]) -> Array:
    config, ops, at = stages.config, stages.ops, stages.ledger.at
    level, name, hidden = config.levels[here], f"up_blocks.{index}", block_input
    for layer, depth in enumerate(level.decoder_depths()):
        skip = skips.pop()
        rows, channels, height, width = hidden.shape
        with at(f"{name}.resnets.{layer}", "convolutions", here):
            joined = (rows, channels + skip.shape[1], height, width)
            hidden = ops.elementwise("cat", hidden, skip, shape=joined)
        del skip
        if stages.recomputes(name):
            hidden = _layer(stages, name, layer, here, hidden, level.channels, level.attention, depth)
        else:
            hidden = _resnet(stages, name, layer, here, hidden, level.channels)
            hidden = _attended(stages, name, layer, here, hidden, level.attention, depth)
    if here:
        rows, channels = hidden.shape[:2]
        height, width = skips[-1].shape[2:]
        with at(f"{name}.upsamplers.0", "convolutions", here - 1):
            hidden = _upsample(ops, hidden, (rows, channels, height, width))
    return hidden


def _upsample(ops: Operations, x: Array, shape: tuple[int, int, int, int]) -> Array:
    larger = ops.elementwise("interpolate", x, shape=shape)
    return ops.conv(larger, shape[1])


def _layer(
    stages: Stages,
    block: str,
    layer: int,
    level: int,
    hidden: Array,
    channels: int,
    kind: CrossAttention | SelfAttention | None,
    depth: int,
) -> Array:
    """`Stage.layer`: a ResBlock, and the attention after it, during which the ResBlock's input lives on."""
    saved = stages.ops.saved
    kept = 0 if saved is None else len(saved.arrays)
    made = _resnet(stages, block, layer, level, hidden, channels)
    made = _attended(stages, block, layer, level, made, kind, depth)
    if saved is not None and stages.recomputes(block):
        saved.arrays[kept:] = [hidden]
    return made


def _resnet(stages: Stages, block: str, layer: int, level: int, hidden: Array, channels: int) -> Array:
    with stages.ledger.at(f"{block}.resnets.{layer}", "convolutions", level):
        return stages.res_block(hidden, channels, stages.embedding, stages.config.norm_groups)


def _attended(
    stages: Stages,
    block: str,
    layer: int,
    level: int,
    hidden: Array,
    kind: CrossAttention | SelfAttention | None,
    depth: int,
) -> Array:
    if kind is None:
        return hidden
    with stages.ledger.at(f"{block}.attentions.{layer}", "transformer", level):
        return stages.attend(hidden, kind, depth)


def _stored(hidden: Array) -> Array:
    hidden.buffer.becomes("skips")
    return hidden


def predict(stages: Stages, latents: Array, *, controlled: bool = False, running: bool = False) -> Array:
    """`UNet.predict`. controlled: whether ControlNets add to the skip connections. running: whether T2I-Adapters add to
    activations on the way."""
    hidden, skips = encode(stages, latents, added=running_places(stages.config) if running else ())
    hidden = middle(stages, hidden)
    if controlled:
        with stages.ledger.at("residuals", "skips"):
            lowest, hidden = hidden, stages.ops.elementwise("add", hidden)
            del lowest
        skips = _with_residuals(stages, skips)
    return decode(stages, hidden, skips)


def _with_residuals(stages: Stages, skips: list[Array]) -> list[Array]:
    with stages.ledger.at("residuals", "skips"):
        return [stages.ops.elementwise("add", skip) for skip in skips]


def residuals(stages: Stages, latents: Array) -> list[Array]:
    """`ControlNet.predict`, which adds the embedded hint to what `conv_in` makes."""
    hidden, skips = encode(stages, latents, added=(0,))
    hidden = middle(stages, hidden)
    with stages.ledger.at("controlnet_mid_block", "residuals"):
        found = [stages.ops.plain_conv(hidden, hidden.shape[1], 1)]
    with stages.ledger.at("controlnet_down_blocks", "residuals"):
        return found + [stages.ops.plain_conv(skip, skip.shape[1], 1) for skip in skips]
