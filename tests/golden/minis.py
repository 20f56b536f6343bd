"""Miniature networks that keep every structural feature of the published ones, each with its diffusers twin.

Both sides are written out by hand: were one derived from the other, a mistake in the translation would cancel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from undertow.attention.kernel import AttentionKernel
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels, CrossAttention, Level, Middle, SelfAttention, TextTime, UNetConfig
from undertow.unet.unet import UNet

CONTEXT = 24
TIMESTEPS = torch.tensor([3.0, 871.5])


@dataclass(frozen=True, kw_only=True)
class Mini:
    """One architecture in our words and in diffusers'. own: fields that only undertow reads from a config.json."""

    config: UNetConfig
    diffusers: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)


def _levels(channels: tuple[int, ...], heads: tuple[int | None, ...], depths: tuple[int, ...]) -> tuple[Level, ...]:
    return tuple(
        Level(channels=c, attention=None if h is None else CrossAttention(heads=h, depth=d))
        for c, h, d in zip(channels, heads, depths, strict=True)
    )


_CROSS_DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
_CROSS_UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3

M15 = Mini(
    config=UNetConfig(
        levels=_levels((32, 64, 128, 128), (8, 8, 8, None), (1, 1, 1, 1)),
        middle=Middle(attention=CrossAttention(heads=8)),
        context_dim=CONTEXT,
    ),
    diffusers={
        "block_out_channels": [32, 64, 128, 128],
        "attention_head_dim": 8,
        "cross_attention_dim": CONTEXT,
        "down_block_types": _CROSS_DOWN,
        "up_block_types": _CROSS_UP,
    },
)

M9 = Mini(config=replace(M15.config, in_channels=9), diffusers={**M15.diffusers, "in_channels": 9})
M8 = Mini(config=replace(M15.config, in_channels=8), diffusers={**M15.diffusers, "in_channels": 8})
MLCM = Mini(config=replace(M15.config, guidance_dim=16), diffusers={**M15.diffusers, "time_cond_proj_dim": 16})

M21 = Mini(
    config=UNetConfig(
        levels=_levels((32, 64, 128, 128), (4, 8, 16, None), (1, 1, 1, 1)),
        middle=Middle(attention=CrossAttention(heads=16)),
        context_dim=CONTEXT,
        linear_projection=True,
        upcast_attention=True,
    ),
    diffusers={
        **M15.diffusers,
        "attention_head_dim": [4, 8, 16, 16],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
)

_XL_TYPES = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}

MXL = Mini(
    config=UNetConfig(
        levels=_levels((32, 64, 128), (None, 8, 16), (1, 2, 3)),
        middle=Middle(attention=CrossAttention(heads=16, depth=3)),
        context_dim=CONTEXT,
        linear_projection=True,
        added=TextTime(pooled_dim=16, ids=6, sinusoid_dim=32),
    ),
    diffusers={
        **_XL_TYPES,
        "block_out_channels": [32, 64, 128],
        "attention_head_dim": [4, 8, 16],
        "transformer_layers_per_block": [1, 2, 3],
        "cross_attention_dim": CONTEXT,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 16 + 6 * 32,
    },
)

MRF = Mini(
    config=UNetConfig(
        levels=_levels((32, 64, 128, 128), (None, 8, 16, None), (1, 2, 2, 2)),
        middle=Middle(attention=CrossAttention(heads=16, depth=2)),
        context_dim=CONTEXT,
        linear_projection=True,
        added=TextTime(pooled_dim=16, ids=5, sinusoid_dim=32),
    ),
    diffusers={
        "block_out_channels": [32, 64, 128, 128],
        "attention_head_dim": [4, 8, 16, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 2, 2],
        "cross_attention_dim": CONTEXT,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 16 + 5 * 32,
    },
    own={"time_ids": 5},
)

# A depth of its own for each ResBlock, and no attention in the middle, as in SSD-1B.
MSSD = Mini(
    config=replace(
        MXL.config,
        levels=(
            Level(channels=32),
            Level(channels=64, attention=CrossAttention(heads=8, depth=2, decoder_depth=(2, 1, 1))),
            Level(channels=128, attention=CrossAttention(heads=16, depth=(3, 1), decoder_depth=(1, 2, 3))),
        ),
        middle=Middle(resnets=1),
    ),
    diffusers={
        **MXL.diffusers,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 2, [3, 1]],
        "reverse_transformer_layers_per_block": [[1, 2, 3], [2, 1, 1], 1],
    },
)

_PIXEL_LEVELS = (
    Level(channels=32),
    Level(channels=64, attention=SelfAttention(heads=2)),
    Level(channels=128, attention=SelfAttention(heads=4)),
)

# Sines first and shift 1, as in DDPM; ten classes and the null row.
MPIX = Mini(
    config=UNetConfig(
        levels=_PIXEL_LEVELS,
        middle=Middle(attention=SelfAttention(heads=4)),
        in_channels=3,
        out_channels=3,
        added=ClassLabels(count=10, null=True),
        cos_first=False,
        frequency_shift=1.0,
        time_dim=96,
    ),
    diffusers={
        "block_out_channels": [32, 64, 128],
        "attention_head_dim": 32,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "num_class_embeds": 11,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "time_embedding_dim": 96,
        "norm_eps": 1e-6,
    },
    own={"null_class_label": 10},
)
MPIX = replace(MPIX, config=replace(MPIX.config, norm_eps=1e-6))

# Unconditional, no attention in the middle, other numbers of groups and of ResBlocks.
MUNC = Mini(
    config=UNetConfig(
        levels=tuple(Level(channels=c, resnets=1, attention=a) for c, a in ((32, None), (64, SelfAttention(heads=8)))),
        in_channels=1,
        out_channels=1,
        norm_groups=8,
    ),
    diffusers={
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "in_channels": 1,
        "out_channels": 1,
        "norm_num_groups": 8,
        "add_attention": False,
    },
)

MINIS = {
    "M15": M15,
    "M21": M21,
    "MXL": MXL,
    "MRF": MRF,
    "M9": M9,
    "M8": M8,
    "MLCM": MLCM,
    "MSSD": MSSD,
    "MPIX": MPIX,
    "MUNC": MUNC,
}


def randomize(network: nn.Module, seed: int) -> None:
    """Fills every parameter: matrices N(0, 1/fan_in), norm weights 1 + 0.2 N, biases 0.1 N, tables N(0, 1).

    Never the default initialization, under which zeroed layers would make a test pass that shows nothing. What brings
    the time embedding into a ResBlock is doubled, so that timesteps matter as much as in a trained network.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, module in network.named_modules():
            gain = 2.0 if path.endswith("time_emb_proj") else 1.0
            norm = isinstance(module, nn.GroupNorm | nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False):
                normal = torch.randn(parameter.shape, generator=generator)
                if norm and name == "weight":
                    parameter.copy_(1 + 0.2 * normal)
                elif parameter.ndim == 1:
                    parameter.copy_(0.1 * normal)
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(normal)
                else:
                    parameter.copy_(gain * normal * parameter[0].numel() ** -0.5)


def build(mini: Mini, *, seed: int = 0, attention: AttentionKernel | None = None) -> UNet:
    """Our network with random weights."""
    unet = UNet(mini.config, attention)
    randomize(unet, seed)
    return unet.eval()


def build_twin(mini: Mini, unet: UNet | None = None) -> nn.Module:
    """diffusers' network, with the weights of `unet`."""
    unconditional = mini.config.context_dim is None
    twin = UNet2DModel(**mini.diffusers) if unconditional else UNet2DConditionModel(**mini.diffusers)
    if unet is not None:
        twin.load_state_dict(unet.state_dict())
    return twin.eval()


@cache
def pair(name: str) -> tuple[UNet, nn.Module]:
    """Our mini and diffusers' with equal weights; shared between tests, so never changed."""
    unet = build(MINIS[name])
    return unet, build_twin(MINIS[name], unet)


def latents_for(mini: Mini, height: int = 16, width: int = 16, *, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, mini.config.in_channels, height, width, generator=torch.Generator().manual_seed(seed))


def conditioning_for(mini: Mini, *, batch: int = 2, tokens: int = 7, seed: int = 2) -> Conditioning:
    """Random values for every field that the network has."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config, added = mini.config, mini.config.added
    text_time = added if isinstance(added, TextTime) else None
    return Conditioning(
        context=None if config.context_dim is None else normal(batch, tokens, config.context_dim),
        pooled=None if text_time is None else normal(batch, text_time.pooled_dim),
        time_ids=None
        if text_time is None
        else torch.randint(0, 1024, (batch, text_time.ids), generator=generator).float(),
        class_labels=torch.arange(batch) * 7 % added.rows if isinstance(added, ClassLabels) else None,
        guidance=None if config.guidance_dim is None else 1 + 8 * torch.rand(batch, generator=generator),
    )


def run_twin(twin: nn.Module, latents: Tensor, timesteps: Tensor, given: Conditioning, **extra: Any) -> Tensor:
    """diffusers' forward with our conditioning in its words; `extra` goes to it as it is."""
    if isinstance(twin, UNet2DModel):
        return twin(latents, timesteps, class_labels=given.class_labels).sample
    if given.pooled is not None:
        added = {"text_embeds": given.pooled, "time_ids": given.time_ids}
        extra["added_cond_kwargs"] = {**added, **extra.get("added_cond_kwargs", {})}
    return twin(
        latents, timesteps, encoder_hidden_states=given.context, encoder_attention_mask=given.context_mask, **extra
    ).sample
