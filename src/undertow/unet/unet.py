"""The U-Net (arXiv:1505.04597; arXiv:2006.11239; arXiv:2112.10752): one class for every family.

Parameter names are diffusers' (`down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight`): LoRA, ControlNet
and IP-Adapter files key on them, and a diffusers folder loads without a mapping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.choose import kernel_named
from undertow.attention.kernel import AttentionKernel
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Conv2d, WeightRows
from undertow.nn.attention import AttentionProjections
from undertow.nn.embeddings import TimeEmbedding, guidance_sinusoid, sinusoid
from undertow.shapes import Latents, Timesteps
from undertow.unet.blocks import DownStage, MiddleStage, StageInputs, UpStage, plus
from undertow.unet.checks import check_inputs, check_values
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels, TextTime, UNetConfig

Hidden = Float[Tensor, "..."]


@dataclass(frozen=True, kw_only=True)
class AttendedPrediction:
    """A prediction, and how much attention each cell of the bottleneck receives, 1 on average."""

    prediction: Float[Tensor, "batch out_channels height width"]
    attention: Float[Tensor, "batch cells_high cells_wide"]


class UNet(nn.Module):
    """Predicts noise, velocity or the clean picture from noisy latents, timesteps and conditioning.

    The forward has three stages that can be called alone: `encode`, `bridge`, `decode`. gradient_checkpointing:
    recompute activations in the backward pass, for training in less memory (trap T6: it saves nothing at inference).
    """

    def __init__(self, config: UNetConfig, attention: AttentionKernel | None = None):
        super().__init__()
        kernel = kernel_named("auto", float32_logits=config.upcast_attention) if attention is None else attention
        first, levels = config.levels[0].channels, len(config.levels)
        self.config = config
        self.gradient_checkpointing = False
        self.time_embedding = TimeEmbedding(config.timestep_sinusoid_dim, config.embedding_dim, config.guidance_dim)
        match config.added:
            case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim):
                self.add_embedding = TimeEmbedding(pooled + ids * dim, config.embedding_dim)
            case ClassLabels():
                self.class_embedding = nn.Embedding(config.added.rows, config.embedding_dim)
            case None:
                pass
        self.conv_in = Conv2d(config.in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownStage(config, index, kernel) for index in range(levels))
        self.mid_block = MiddleStage(config, kernel)
        self.up_blocks = nn.ModuleList(UpStage(config, index, kernel) for index in range(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, first, config.norm_eps)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, AttentionProjections):
                module.site = name

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    def forward(
        self,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning | None = None,
        ports: Ports | None = None,
    ) -> Float[Tensor, "batch out_channels height width"]:
        """The network's prediction, of the same size and type as `latents`.

        latents [batch, in_channels, height, width] of any size; timesteps [batch], float or integer, 0 nearly clean.
        Errors: `InvalidInput` for wrong ranks, channels, types or widths and for missing conditioning; on CPU also
        for NaN, timesteps and labels out of range (on other devices these checks would wait for the device).
        """
        return self.predict(latents, timesteps, *self._checked(latents, timesteps, conditioning, ports))

    def predict(
        self, latents: Latents, timesteps: Timesteps, conditioning: Conditioning, ports: Ports
    ) -> Float[Tensor, "batch out_channels height width"]:
        """`forward` without checks: what gets compiled."""
        inputs = self.stage_inputs(timesteps, conditioning, ports)
        hidden, skips = self.encode(latents, inputs, _running(ports))
        return self._bridge_and_decode(hidden, skips, inputs, ports)

    def forward_with_attention(
        self,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning | None = None,
        ports: Ports | None = None,
    ) -> "AttendedPrediction":
        """`forward`, and how much attention each cell of the bottleneck receives: what self-attention guidance reads.
        The prediction is the same bit for bit. Errors: also for a network without self-attention in the middle."""
        if self.mid_block.attentions is None:
            raise InvalidInput("the middle block", "without attention", "a self-attention whose map can be read")
        return self.predict_with_attention(latents, timesteps, *self._checked(latents, timesteps, conditioning, ports))

    def predict_with_attention(
        self, latents: Latents, timesteps: Timesteps, conditioning: Conditioning, ports: Ports
    ) -> "AttendedPrediction":
        """`forward_with_attention` without checks."""
        inputs = self.stage_inputs(timesteps, conditioning, ports)
        hidden, skips = self.encode(latents, inputs, _running(ports))
        attention = self.mid_block.attention_received(hidden, inputs)
        prediction = self._bridge_and_decode(hidden, skips, inputs, ports)
        return AttendedPrediction(prediction=prediction, attention=attention)

    def _bridge_and_decode(self, hidden: Hidden, skips: list[Hidden], inputs: StageInputs, ports: Ports) -> Hidden:
        if ports.residuals is not None:
            skips = _add_residuals(skips, ports.residuals)
        hidden = self.bridge(hidden, inputs)
        if ports.residuals is not None and ports.residuals.middle is not None:
            hidden = hidden + ports.residuals.middle
        return self.decode(hidden, skips, inputs)

    def stage_inputs(self, timesteps: Timesteps, conditioning: Conditioning, ports: Ports) -> StageInputs:
        """What every stage receives: the time embedding (its SiLU applied), the text and the ports."""
        mask = conditioning.context_mask
        return StageInputs(
            embedding=F.silu(self.embed(timesteps, conditioning, ports.weights)),
            context=conditioning.context,
            mask=None if mask is None else mask[:, None, None, :],
            regions=conditioning.regions,
            weights=ports.weights,
            image=ports.image,
            perturbed=ports.self_attention,
            free_u=ports.free_u,
            checkpointing=self.gradient_checkpointing and self.training,
        )

    def embed(
        self, timesteps: Timesteps, conditioning: Conditioning, weights: WeightRows | None = None
    ) -> Float[Tensor, "batch embedding_dim"]:
        """Timesteps, guidance, size ids, pooled text and class labels as one vector per row."""
        config = self.config
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
        """The way down: activations at the lowest resolution, and the stored skips in order. running: as `Residuals`
        has them."""
        hidden = plus(self.conv_in(latents, inputs.weights), running, 0)
        skips = [hidden]
        for block in self.down_blocks:
            hidden, stored = block(hidden, inputs, running[len(skips) :])
            skips += stored
        return hidden, skips

    def bridge(self, hidden: Hidden, inputs: StageInputs) -> Hidden:
        """The bottleneck."""
        return self.mid_block(hidden, inputs)

    def decode(self, hidden: Hidden, skips: list[Hidden], inputs: StageInputs) -> Hidden:
        """The way up, consuming the skips from the last stored to the first, and the output layers."""
        skips = list(skips)
        for block in self.up_blocks:
            hidden = block(hidden, skips, inputs)
        return self.conv_out(F.silu(self.conv_norm_out(hidden)), inputs.weights)

    def _checked(
        self, latents: Latents, timesteps: Timesteps, conditioning: Conditioning | None, ports: Ports | None
    ) -> tuple[Conditioning, Ports]:
        conditioning = Conditioning() if conditioning is None else conditioning
        ports = Ports() if ports is None else ports
        check_inputs(self.config, self.dtype, latents, timesteps, conditioning, ports)
        if not torch.compiler.is_compiling():
            check_values(self.config, latents, timesteps, conditioning, ports)
        return conditioning, ports

    def _sinusoid(self, numbers: Tensor, dim: int) -> Tensor:
        """Computed in float32, where 999 and 999.5 differ, then cast."""
        config = self.config
        return sinusoid(numbers, dim, cos_first=config.cos_first, frequency_shift=config.frequency_shift).to(self.dtype)


def _running(ports: Ports) -> tuple[Hidden | None, ...]:
    return () if ports.residuals is None else ports.residuals.running


def _add_residuals(skips: list[Hidden], residuals: Residuals) -> list[Hidden]:
    if not residuals.skips:
        return skips
    return [skip + residual for skip, residual in zip(skips, residuals.skips, strict=True)]
