"""The U-Net (arXiv:1505.04597; arXiv:2006.11239; arXiv:2112.10752): one class for every family.

Parameter names are diffusers' (`down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight`): LoRA, ControlNet
and IP-Adapter files key on them, and a diffusers folder loads without a mapping.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.choose import kernel_named
from undertow.attention.kernel import AttentionKernel
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Conv2d
from undertow.shapes import Latents, Timesteps
from undertow.unet.blocks import StageInputs, UpStage
from undertow.unet.checks import check_inputs, check_values
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import UNetConfig
from undertow.unet.encoder import Encoder

Hidden = Float[Tensor, "..."]


@dataclass(frozen=True, kw_only=True)
class AttendedPrediction:
    """A prediction, and how much attention each cell of the bottleneck receives, 1 on average."""

    prediction: Float[Tensor, "batch out_channels height width"]
    attention: Float[Tensor, "batch cells_high cells_wide"]


class UNet(Encoder):
    """Predicts noise, velocity or the clean picture from noisy latents, timesteps and conditioning.

    The forward has three stages that can be called alone: `encode`, `bridge`, `decode`.
    """

    def __init__(self, config: UNetConfig, attention: AttentionKernel | None = None):
        kernel = kernel_named("auto", float32_logits=config.upcast_attention) if attention is None else attention
        super().__init__(config, kernel)
        first, levels = config.levels[0].channels, len(config.levels)
        self.config = config
        self.up_blocks = nn.ModuleList(UpStage(config, index, kernel) for index in range(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, first, config.norm_eps)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1)
        self.name_attentions()

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


def _running(ports: Ports) -> tuple[Hidden | None, ...]:
    return () if ports.residuals is None else ports.residuals.running


def _add_residuals(skips: list[Hidden], residuals: Residuals) -> list[Hidden]:
    if not residuals.skips:
        return skips
    return [skip + residual for skip, residual in zip(skips, residuals.skips, strict=True)]
