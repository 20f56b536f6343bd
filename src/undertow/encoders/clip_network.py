"""CLIP's two transformers (arXiv:2103.00020, section 2.4), with the parameter names of transformers' modules.

Written out, because importing transformers' takes longer than loading and running these: two seconds, of which half is
PyTorch's compiler. The tests hold both to the same bits.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from undertow.encoders.clip_config import Activation, ClipTextConfig
from undertow.encoders.image_config import ClipVisionConfig
from undertow.nn.initialization import VectorTable

Hidden = Float[Tensor, "batch tokens width"]
Mask = Bool[Tensor, "batch 1 tokens tokens"]


class ClipAttention(nn.Module):
    """Multi-head self-attention. mask: which tokens each token sees; `causal` for those up to itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Hidden, mask: Mask | None, causal: bool) -> Hidden:
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden))
        )
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class ClipFeedForward(nn.Module):
    """Two linear layers around a GELU, which OpenAI's networks approximate by x · sigmoid(1.702 x) (trap T2)."""

    def __init__(self, width: int, intermediate: int, activation: Activation):
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = nn.Linear(width, intermediate)
        self.fc2 = nn.Linear(intermediate, width)

    def forward(self, hidden: Hidden) -> Hidden:
        inner = self.fc1(hidden)
        inner = inner * torch.sigmoid(1.702 * inner) if self.activation == "quick_gelu" else F.gelu(inner)
        return self.fc2(inner)


class ClipLayer(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and added to what went in."""

    def __init__(self, config: ClipTextConfig | ClipVisionConfig):
        super().__init__()
        self.self_attn = ClipAttention(config.width, config.heads)
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = ClipFeedForward(config.width, config.intermediate, config.activation)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, hidden: Hidden, mask: Mask | None = None, *, causal: bool = False) -> Hidden:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), mask, causal)
        return hidden + self.mlp(self.layer_norm2(hidden))


class ClipLayers(nn.Module):
    """The layers of a transformer, which whoever reads one of them runs up to it."""

    def __init__(self, config: ClipTextConfig | ClipVisionConfig, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(layers))


class ClipTextEmbeddings(nn.Module):
    """A vector for each token of the vocabulary, and one for each position."""

    def __init__(self, config: ClipTextConfig):
        super().__init__()
        self.token_embedding = VectorTable(config.vocabulary, config.width)
        self.position_embedding = VectorTable(config.positions, config.width)


class ClipText(nn.Module):
    """The modules of transformers' CLIPTextModel. layers: how many of the config's there are."""

    def __init__(self, config: ClipTextConfig, layers: int):
        super().__init__()
        self.embeddings = ClipTextEmbeddings(config)
        self.encoder = ClipLayers(config, layers)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)


class ClipVisionEmbeddings(nn.Module):
    """A vector for the whole picture and one for each of its square patches, plus their positions."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = nn.Conv2d(
            config.channels, config.width, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = VectorTable(config.tokens, config.width)

    def forward(self, pixels: Float[Tensor, "images channels side side"]) -> Hidden:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        whole = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class ClipVisionTransformer(nn.Module):
    """The modules of transformers' CLIPVisionModel."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.embeddings = ClipVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.norm_eps)  # spelled so in every file
        self.encoder = ClipLayers(config, config.layers)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_eps)


class ClipVision(nn.Module):
    """The modules of transformers' CLIPVisionModelWithProjection."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.vision_model = ClipVisionTransformer(config)
        self.visual_projection = nn.Linear(config.width, config.projection, bias=False)

    def forward(
        self, pixels: Float[Tensor, "images channels side side"]
    ) -> tuple[Float[Tensor, "images pooled_dim"], Hidden]:
        """The projected vector of the whole picture, and the states before the last layer."""
        model = self.vision_model
        hidden = before = model.pre_layrnorm(model.embeddings(pixels))
        for layer in model.encoder.layers:
            before, hidden = hidden, layer(hidden)
        return self.visual_projection(model.post_layernorm(hidden[:, 0])), before
