"""The encoder half of a U-Net: embeddings, the down blocks and the middle block.

A ControlNet is this half with output layers of its own (`adapters.control`). Parameter names are diffusers'
(`down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight`).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.kernel import AttentionKernel
from undertow.nn.adaptable import Conv2d, WeightRows
from undertow.nn.attention import AttentionInputs, AttentionMaps, AttentionProjections
from undertow.nn.embeddings import TimeEmbedding, guidance_sinusoid, sinusoid
from undertow.nn.initialization import VectorTable
from undertow.shapes import Latents, Timesteps
from undertow.unet.blocks import Checkpointing, DownStage, MiddleStage, StageInputs, with_addition
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.config import ClassLabels, TextTime, UNetConfig

Hidden = Float[Tensor, "..."]


class Encoder(nn.Module):
    """Time and added embeddings, `conv_in`, the down blocks and the middle block, with the methods that run them.

    gradient_checkpointing: recompute activations in the backward pass, to train in less memory (trap T6: it saves
    nothing at inference); of all stages, or of those that are named. kernel: the attention kernel of all layers.
    """

    def __init__(self, config: UNetConfig, kernel: AttentionKernel):
        super().__init__()
        self.gradient_checkpointing: Checkpointing = False
        self.unet_config = config
        self.kernel = kernel
        self.time_embedding = TimeEmbedding(config.timestep_sinusoid_dim, config.embedding_dim, config.guidance_dim)
        match config.added:
            case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim):
                self.add_embedding = TimeEmbedding(pooled + ids * dim, config.embedding_dim)
            case ClassLabels():
                self.class_embedding = VectorTable(config.added.rows, config.embedding_dim)
            case None:
                pass
        self.conv_in = Conv2d(config.in_channels, config.levels[0].channels, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownStage(config, index, kernel) for index in range(len(config.levels)))
        self.mid_block = MiddleStage(config, kernel)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    def name_attentions(self) -> None:
        """Gives every attention layer its name, by which ports address it; called when all layers exist."""
        for name, module in self.named_modules():
            if isinstance(module, AttentionProjections):
                module.site = name

    def stage_inputs(
        self, timesteps: Timesteps, conditioning: Conditioning, ports: Ports, maps: AttentionMaps | None = None
    ) -> StageInputs:
        """The inputs of every stage: the time embedding (after its SiLU), the text, the ports, and what to observe."""
        mask = conditioning.context_mask
        return StageInputs(
            embedding=F.silu(self.embed(timesteps, conditioning, ports.weights)),
            attention=AttentionInputs(
                context=conditioning.context,
                mask=None if mask is None else mask[:, None, None, :],
                weights=ports.weights,
                image=ports.image,
                perturbed=ports.self_attention,
                text=ports.text,
                maps=maps,
                feed_forward_chunks=ports.feed_forward_chunks,
                attention_in_parts=ports.attention_in_parts,
            ),
            regions=conditioning.regions,
            free_u=ports.free_u,
            checkpointing=self.gradient_checkpointing if self.training else False,
        )

    def embed(
        self, timesteps: Timesteps, conditioning: Conditioning, weights: WeightRows | None = None
    ) -> Float[Tensor, "batch embedding_dim"]:
        """Timesteps, guidance, size ids, pooled text and class labels as one vector per row."""
        config = self.unet_config
        guidance = None
        if config.guidance_dim is not None and conditioning.guidance is not None:
            guidance = guidance_sinusoid(conditioning.guidance, config.guidance_dim).to(self.dtype)
        embedding = self.time_embedding(self._sinusoid(timesteps, config.timestep_sinusoid_dim), guidance, weights)
        match config.added:
            case TextTime(sinusoid_dim=dim):
                pooled, ids = cast(Tensor, conditioning.pooled), cast(Tensor, conditioning.time_ids)
                sizes = self._sinusoid(ids.flatten(), dim).reshape(ids.shape[0], -1)
                return embedding + self.add_embedding(torch.cat((pooled, sizes), dim=-1), weights=weights)
            case ClassLabels():
                return embedding + self.class_embedding(conditioning.class_labels)
            case None:
                return embedding

    def encode(
        self, latents: Latents, inputs: StageInputs, running: Sequence[Hidden | None] = ()
    ) -> tuple[Hidden, list[Hidden]]:
        """Runs the down blocks; returns the hidden activations at the lowest resolution, and the stored skip
        connections in order. running: as in `Residuals`."""
        hidden = with_addition(self.conv_in(latents, inputs.weights), running, 0)
        skips = [hidden]
        for block in self.down_blocks:
            hidden, stored = block(hidden, inputs, running[len(skips) :])
            skips += stored
        return hidden, skips

    def bridge(self, hidden: Hidden, inputs: StageInputs) -> Hidden:
        """Runs the middle block."""
        return self.mid_block(hidden, inputs)

    def _sinusoid(self, numbers: Tensor, dim: int) -> Tensor:
        """Computed in float32, where 999 and 999.5 differ, then cast."""
        config = self.unet_config
        return sinusoid(numbers, dim, cos_first=config.cos_first, frequency_shift=config.frequency_shift).to(self.dtype)
