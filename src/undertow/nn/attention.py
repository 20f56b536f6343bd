"""Attention layers of the networks: projections around an injected kernel, with the ports that act in attention."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor, nn

from undertow.attention.in_parts import in_parts
from undertow.attention.kernel import AttentionKernel
from undertow.doors import checked_names_of
from undertow.nn.adaptable import Linear, WeightRows
from undertow.nn.normalization import GroupNorm
from undertow.nn.perturbation import PerturbedRows, blur_queries, keep_own_values
from undertow.shapes import AttentionMask, FeatureMap, Heads, Sequence


@checked_names_of
@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """The image port at one cross-attention: keys and values of a reference picture (IP-Adapter, arXiv:2308.06721).

    They depend on neither latents nor timestep and are computed once per request. gain: strength per row. mask: True
    where a token is real, for rows with fewer tokens than others. area: how strongly each cell of this attention's map
    sees the picture, row by row, for pictures that act in part of the canvas.
    """

    keys: Float[Tensor, "batch image_tokens dim"]
    values: Float[Tensor, "batch image_tokens dim"]
    gain: Float[Tensor, "batch"]
    mask: Bool[Tensor, "batch image_tokens"] | None = None
    area: Float[Tensor, "batch queries"] | None = None


KeysAndValues = tuple[Float[Tensor, "..."], Float[Tensor, "..."]]
"""Of a cross-attention to the text, each [batch, heads, tokens, head_dim]."""

ImagePort = Mapping[str, tuple[ImageTokens, ...]]
"""Pictures by the name of the cross-attention that sees them; each has a softmax of its own, and all are added."""


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Attention maps of selected self-attentions: how much attention each cell receives, as the mean over heads of the
    sum over queries; 1 on average.

    sites: names of the self-attentions to observe. found: the maps by name, added by each layer during the forward.
    """

    sites: tuple[str, ...]
    found: dict[str, Float[Tensor, "batch _height _width"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """Everything an attention layer may receive besides its tokens. Layers pass the record on whole and read what
    concerns them, so that a new port is a new field here and not another parameter of every layer in between.

    context, mask: used by cross-attention only. weights: the weight port. image: the image port. perturbed:
    perturbations of self-attentions, by name. text: keys and values of the context by cross-attention; those that are
    missing are added. maps: self-attentions to observe. height: of the feature map whose cells are the tokens; set by
    the layer that flattens the map. feed_forward_chunks: read by the feed-forward layer that
    follows, see `FeedForward`. attention_in_parts: the kernel computes parts of the queries one after the other.
    """

    context: Float[Tensor, "batch keys context_dim"] | None = None
    mask: AttentionMask | None = None
    weights: WeightRows | None = None
    image: ImagePort | None = None
    perturbed: Mapping[str, PerturbedRows] | None = None
    text: dict[str, KeysAndValues] | None = None
    maps: AttentionMaps | None = None
    height: int = 1
    feed_forward_chunks: int = 1
    attention_in_parts: bool = False


NO_INPUTS = AttentionInputs()
"""No context, and no port in use."""


class AttentionProjections(nn.Module):
    """The four projections of multi-head attention, around the injected kernel.

    site: this module's name in its network, by which ports address it.
    """

    def __init__(
        self, dim: int, heads: int, *, context_dim: int | None = None, bias: bool = False, kernel: AttentionKernel
    ):
        super().__init__()
        source = dim if context_dim is None else context_dim
        self.site = ""
        self.is_cross = context_dim is not None
        self.heads = heads
        self.kernel = kernel
        self.to_q = Linear(dim, dim, bias=bias)
        self.to_k = Linear(source, dim, bias=bias)
        self.to_v = Linear(source, dim, bias=bias)
        self.to_out = nn.ModuleList([Linear(dim, dim)])

    def attend(self, x: Sequence, inputs: AttentionInputs) -> Sequence:
        """Attention of x to the context, or to itself in a layer built without `context_dim`."""
        source, mask = (inputs.context, inputs.mask) if self.is_cross else (x, None)
        assert source is not None  # the context was checked with the network's inputs
        weights, image = inputs.weights, inputs.image
        change = None if inputs.perturbed is None else inputs.perturbed.get(self.site)
        queries = self.to_q(x, weights)
        key, value = self._keys_and_values(source, inputs)
        if inputs.maps is not None and self.site in inputs.maps.sites:
            received = attention_received(self._split(queries), key)
            inputs.maps.found[self.site] = received.unflatten(1, (inputs.height, -1))
        if change is not None and change.blur is not None:
            queries = blur_queries(queries, change.blur, inputs.height)
        query = self._split(queries)
        kernel = in_parts(self.kernel) if inputs.attention_in_parts else self.kernel
        output = kernel(query, key, value, mask)
        if change is not None and change.identity is not None:
            output = keep_own_values(output, value, change.identity)
        if image is not None and self.site in image:
            for tokens in image[self.site]:
                output = output + self._attend_to_image(query, tokens, kernel)
        return self.to_out[0](output.transpose(1, 2).flatten(2), weights)

    def _keys_and_values(self, source: Sequence, inputs: AttentionInputs) -> KeysAndValues:
        kept = inputs.text if self.is_cross else None
        if kept is not None and self.site in kept:
            return kept[self.site]
        weights = inputs.weights
        found = self._split(self.to_k(source, weights)), self._split(self.to_v(source, weights))
        if kept is not None:
            kept[self.site] = found
        return found

    def _attend_to_image(self, query: Heads, tokens: ImageTokens, kernel: AttentionKernel) -> Heads:
        mask = None if tokens.mask is None else tokens.mask[:, None, None, :]
        output = kernel(query, self._split(tokens.keys), self._split(tokens.values), mask)
        strength = tokens.gain[:, None] if tokens.area is None else tokens.gain[:, None] * tokens.area
        return output * strength[:, None, :, None].to(output.dtype)

    def _split(self, x: Sequence) -> Heads:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Attention(AttentionProjections):
    """Multi-head attention of a sequence to itself, or, built with `context_dim`, to the context (arXiv:1706.03762,
    section 3.2.2)."""

    def forward(self, x: Sequence, inputs: AttentionInputs = NO_INPUTS) -> Sequence:
        return self.attend(x, inputs)


class SpatialSelfAttention(AttentionProjections):
    """Self-attention over the cells of a feature map, with its own GroupNorm and residual (arXiv:2006.11239).

    The projections are 1x1 convolutions, stored as matrices of the same numbers.
    """

    def __init__(self, channels: int, heads: int, *, norm_groups: int, norm_eps: float, kernel: AttentionKernel):
        super().__init__(channels, heads, bias=True, kernel=kernel)
        self.group_norm = GroupNorm(norm_groups, channels, norm_eps)

    def forward(self, x: FeatureMap, inputs: AttentionInputs = NO_INPUTS) -> FeatureMap:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        output = self.attend(tokens, replace(inputs, height=x.shape[2]))
        return x + output.transpose(1, 2).reshape(x.shape)


def attention_received(query: Heads, key: Heads) -> Float[Tensor, "batch tokens"]:
    """How much attention each key receives from all queries: the mean over heads of the sum over queries, in float32.
    It is computed separately because kernels do not return their scores."""
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().mT
    return scores.softmax(-1).mean(1).sum(1)
