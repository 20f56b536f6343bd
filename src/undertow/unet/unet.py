"""The U-Net (arXiv:1505.04597; arXiv:2006.11239; arXiv:2112.10752): one class for every family.

Parameter names are diffusers' (`down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight`): LoRA, ControlNet
and IP-Adapter files key on them, and a diffusers folder loads without a mapping.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.chosen import kernel_named
from undertow.attention.kernel import AttentionKernel
from undertow.doors import checked, checked_names
from undertow.nn.adaptable import Conv2d
from undertow.nn.attention import AttentionMaps
from undertow.nn.normalization import GroupNorm
from undertow.shapes import Latents, Timesteps
from undertow.unet.blocks import StageInputs, UpStage
from undertow.unet.checks import check_inputs, check_kinds, check_observed, check_values, each_row
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import UNetConfig
from undertow.unet.encoder import Encoder

Hidden = Float[Tensor, "..."]


@dataclass(frozen=True, kw_only=True)
class UNetOutput:
    """A prediction, and what was observed during the forward.

    observations: attention maps by the name of the self-attention: how much attention each cell receives, 1 on average.
    """

    prediction: Float[Tensor, "batch out_channels height width"]
    observations: Mapping[str, Float[Tensor, "batch _height _width"]]


class UNet(Encoder):
    """Predicts noise, velocity or the clean image from noisy latents, timesteps and conditioning.

    Its three stages `encode`, `bridge` and `decode` can be called separately.
    """

    @checked
    def __init__(self, config: UNetConfig, attention: AttentionKernel | None = None):
        kernel = kernel_named("auto", float32_logits=config.upcast_attention) if attention is None else attention
        super().__init__(config, kernel)
        first, levels = config.levels[0].channels, len(config.levels)
        self.config = config
        self.up_blocks = nn.ModuleList(UpStage(config, index, kernel) for index in range(levels))
        self.conv_norm_out = GroupNorm(config.norm_groups, first, config.norm_eps)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1)
        self.name_attentions()

    @checked_names
    def forward(
        self,
        latents: Latents,
        timesteps: Timesteps | float,
        conditioning: Conditioning | None = None,
        ports: Ports | None = None,
        observed: tuple[str, ...] | None = None,
        compute: Callable[..., UNetOutput] | None = None,
    ) -> Float[Tensor, "batch out_channels height width"] | UNetOutput:
        """The network's prediction, of the same size and type as `latents`; a `UNetOutput` with it when `observed` is
        given.

        latents [batch, in_channels, height, width] of any size; timesteps [batch], float or integer, 0 nearly clean, or
        one number for all rows. observed: names of self-attentions, of those that `UNetConfig.self_attentions` lists,
        whose maps are asked for; they change no bit of the prediction. compute: called with this network and the inputs
        of `predict` in place of it, for graphs compiled from it. Errors: `InvalidInput` for wrong ranks, channels,
        types, widths and names and for missing conditioning; on CPU also for NaN, timesteps and labels out of range (on
        other devices these checks would wait for the device).
        """
        inputs = self._checked(latents, timesteps, conditioning, ports, observed)
        output = self.predict(*inputs) if compute is None else compute(self, *inputs)
        return output.prediction if observed is None else output

    def predict(
        self,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning,
        ports: Ports,
        observed: tuple[str, ...] = (),
    ) -> UNetOutput:
        """`forward` without checks; this is what gets compiled."""
        maps = AttentionMaps(sites=observed) if observed else None
        inputs = self.stage_inputs(timesteps, conditioning, ports, maps)
        residuals = Residuals() if ports.residuals is None else ports.residuals
        hidden, skips = self.encode(latents, inputs, residuals.running)
        hidden = self.bridge(hidden, inputs)
        if residuals.middle is not None:
            hidden = hidden + residuals.middle
        skips = _with_residuals(skips, residuals)
        prediction = self._decode(hidden, skips, inputs)
        return UNetOutput(prediction=prediction, observations={} if maps is None else maps.found)

    def decode(self, hidden: Hidden, skips: list[Hidden], inputs: StageInputs) -> Hidden:
        """Runs the up blocks, which consume the skip connections from the last to the first, and the output layers."""
        return self._decode(hidden, list(skips), inputs)

    def _decode(self, hidden: Hidden, skips: list[Hidden], inputs: StageInputs) -> Hidden:
        """Empties `skips` on the way, so that no skip connection lives longer than until it is read."""
        for block in self.up_blocks:
            hidden = block(hidden, skips, inputs)
        return self.conv_out(F.silu(self.conv_norm_out(hidden)), inputs.weights)

    def _checked(
        self,
        latents: Latents,
        timesteps: Timesteps | float,
        conditioning: Conditioning | None,
        ports: Ports | None,
        observed: tuple[str, ...] | None,
    ) -> tuple[Latents, Timesteps, Conditioning, Ports, tuple[str, ...]]:
        conditioning = Conditioning() if conditioning is None else conditioning
        ports = Ports() if ports is None else ports
        observed = () if observed is None else observed
        check_kinds(latents, timesteps, conditioning, ports, observed)
        timesteps = each_row(timesteps, latents)
        check_inputs(self.config, self.dtype, latents, timesteps, conditioning, ports)
        if observed:
            check_observed(self.config, observed)
        if not torch.compiler.is_compiling():
            check_values(self.config, latents, timesteps, conditioning, ports)
        return latents, timesteps, conditioning, ports, observed


def _with_residuals(skips: list[Hidden], residuals: Residuals) -> list[Hidden]:
    if not residuals.skips:
        return skips
    return [skip + residual for skip, residual in zip(skips, residuals.skips, strict=True)]
