"""The layers of a U-Net on stand-ins: names and order are those of `nn/`."""

from dataclasses import dataclass
from math import prod

from undertow.memory.attention_walk import attend
from undertow.memory.ledger import Array, Ledger
from undertow.memory.operations import Operations
from undertow.memory.work import TrainingWork
from undertow.unet.config import ClassLabels, CrossAttention, SelfAttention, TextTime, UNetConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """The stages of one U-Net. context: the text of every row. others: more inputs, which live as long. image_tokens:
    of each picture that acts (IP-Adapter). chunks: parts in which feed-forward layers are computed. regions: where
    tokens are seen. training: says which layers are recomputed in the backward pass; `None` without one."""

    config: UNetConfig
    ops: Operations
    context: Array | None
    embedding: Array
    others: tuple[Array, ...] = ()
    image_tokens: int = 0
    chunks: int = 1
    regions: Array | None = None
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
                seen = None if self.regions is None else self._seen(self.regions, x)
                made = self._transformer(x, heads, depth)
                del seen
                return made
            case SelfAttention(heads=heads):
                with self.ledger.at(self.ledger.module, "self_attention"):
                    return spatial_self_attention(self.ops, x, heads, self.config.norm_groups)

    def _seen(self, regions: Array, x: Array) -> Array:
        """`StageInputs.attention_over`: which tokens each cell sees."""
        rows, tokens = regions.shape[:2]
        shape = (rows, tokens, *x.shape[2:])
        with self.ledger.held(regions.shape):
            pooled = self.ledger.new(shape, "adaptive_max_pool2d", workspace=8 * prod(shape))
        seen = self.ledger.new(shape, "gt", item=1)
        del pooled
        return seen

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
        output = attend(ops, query, key, value, heads, masked=context is not None and self.regions is not None)
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
    hidden = ops.conv(norm_silu(ops, x, groups), outputs)
    if embedding is not None:
        shift = ops.linear(embedding, outputs)
        hidden = ops.elementwise("add", hidden, shift)
        del shift
    hidden = ops.conv(norm_silu(ops, hidden, groups), outputs)
    return ops.elementwise("add", hidden, x if x.shape[1] == outputs else ops.conv(x, outputs, 1))


def norm_silu(ops: Operations, x: Array, groups: int) -> Array:
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
