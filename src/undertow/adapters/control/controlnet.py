"""ControlNet (arXiv:2302.05543, section 3): a copy of the U-Net's encoder that looks at a hint, a picture of the same
format (edges, depth, a pose), and says through zero convolutions what to add to each skip connection.

Parameter names are diffusers'. The residuals are unscaled; `strength` has the formulas for scales and modes.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.rules import residual_names
from undertow.attention.chosen import kernel_named
from undertow.attention.kernel import AttentionKernel
from undertow.errors import InvalidInput
from undertow.nn.quantized import plain_weights
from undertow.shapes import FeatureMap, Latents, Timesteps
from undertow.unet.checks import check_inputs, check_values
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels, TextTime
from undertow.unet.encoder import Encoder
from undertow.unet.unet import UNet

Hint = Float[Tensor, "batch hint_channels hint_height hint_width"]
"""A control picture in [0, 1], `hint_factor` pixels for each cell of the latents."""

HintMap = Float[Tensor, "hints features rows columns"]
"""A hint embedded: as wide as the first level, of the latents' size; checked at the door."""


class HintEmbedding(nn.Module):
    """Embeds the hint at the width of the first level and the resolution of the latents: 3x3 convolutions with SiLU
    between them, every second one after the first with stride 2."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, stride=2, padding=1))
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, hint: Hint) -> FeatureMap:
        hidden = F.silu(self.conv_in(hint))
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        return self.conv_out(hidden)


class ControlNet(Encoder):
    """Computes residuals for a U-Net's skips and middle block so that the picture follows a hint.

    The hint does not change during sampling: call `embed_hint` once, and `forward` at every step.
    """

    def __init__(self, config: ControlNetConfig, attention: AttentionKernel | None = None):
        unet = config.unet
        kernel = kernel_named("auto", float32_logits=unet.upcast_attention) if attention is None else attention
        super().__init__(unet, kernel)
        self.config = config
        self.controlnet_cond_embedding = HintEmbedding(config.hint_in, config.hint_channels, unet.levels[0].channels)
        widths = [channels for channels, _, _ in unet.skip_shapes(1, 1)]
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)
        self.name_attentions()

    @classmethod
    def from_unet(
        cls, unet: UNet, hint_channels: tuple[int, ...] = (16, 32, 96, 256), *, hint_in: int = 3
    ) -> "ControlNet":
        """A trainable copy of `unet`'s encoder, of its type and on its device, that changes nothing yet: its zero
        convolutions are zero, and so is the hint embedder's last layer (arXiv:2302.05543, section 3.1)."""
        architecture = replace(unet.config, guidance_dim=None)
        config = ControlNetConfig(unet=architecture, hint_channels=hint_channels, hint_in=hint_in)
        network = cls(config, unet.kernel).to(device=unet.device, dtype=unet.dtype)
        own = network.state_dict()
        weights = {name: tensor for name, tensor in plain_weights(unet).items() if name in own}
        network.load_state_dict(weights, strict=False)
        for layer in (
            network.controlnet_cond_embedding.conv_out,
            network.controlnet_mid_block,
            *network.controlnet_down_blocks,
        ):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        return network

    @property
    def hint_factor(self) -> int:
        """Pixels of the hint, in each direction, for one cell of the latents."""
        return 2 ** (len(self.config.hint_channels) - 1)

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the residuals, in the order in which `residuals` counts gains."""
        return residual_names(self.config.unet)

    def hint_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a hint must have for latents of this size."""
        return height * self.hint_factor, width * self.hint_factor

    def embed_hint(self, hint: Hint) -> FeatureMap:
        """Embeds the hint, RGB in [0, 1], for `forward`; once per picture.

        Errors: `InvalidInput` for a wrong rank, number of channels or type, for sizes that are not multiples of
        `hint_factor`, and on CPU for values that are not finite or far outside [0, 1].
        """
        check_hint(hint, self.config.hint_in, self.hint_factor, self.dtype)
        return self.controlnet_cond_embedding(hint.flip(1) if self.config.bgr else hint)

    def forward(
        self,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning,
        hint_embedding: HintMap,
        ports: Ports | None = None,
        compute: Callable[..., Residuals] | None = None,
    ) -> Residuals:
        """The residuals for these latents, the U-Net's inputs: `skips` in the U-Net's order, and `middle`.

        Of `conditioning` it takes what it was built for, so the U-Net's own can be given. ports: of them, in how many
        parts layers compute, and nothing else. compute, errors: as for the U-Net.
        """
        given = self._relevant(conditioning)
        config = self.config.unet
        check_inputs(config, self.dtype, latents, timesteps, given, Ports())
        expected = (latents.shape[0], config.levels[0].channels, *latents.shape[2:])
        if tuple(hint_embedding.shape) != expected:
            raise InvalidInput(
                "hint_embedding",
                list(hint_embedding.shape),
                str(list(expected)),
                f"embed a hint of {self.hint_factor} times the latents' height and width, one for each row",
            )
        if not torch.compiler.is_compiling():
            check_values(config, latents, timesteps, given, Ports())
        inputs = latents, timesteps, given, hint_embedding, _parts(ports)
        return self.predict(*inputs) if compute is None else compute(self, *inputs)

    def predict(
        self,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning,
        hint_embedding: HintMap,
        ports: Ports,
    ) -> Residuals:
        """`forward` without checks: what gets compiled."""
        inputs = self.stage_inputs(timesteps, conditioning, ports)
        hidden, skips = self.encode(latents, inputs, (hint_embedding,))
        middle = self.controlnet_mid_block(self.bridge(hidden, inputs))
        outputs = zip(self.controlnet_down_blocks, skips, strict=True)
        return Residuals(skips=tuple(layer(skip) for layer, skip in outputs), middle=middle)

    def _relevant(self, conditioning: Conditioning) -> Conditioning:
        """The fields that this network reads; the U-Net may read more (a guidance embedding)."""
        config = self.config.unet
        read = {
            "context": config.context_dim is not None,
            "context_mask": config.context_dim is not None,
            "regions": config.context_dim is not None,
            "pooled": isinstance(config.added, TextTime),
            "time_ids": isinstance(config.added, TextTime),
            "class_labels": isinstance(config.added, ClassLabels),
        }
        return Conditioning(
            **{field.name: getattr(conditioning, field.name) for field in fields(conditioning) if read.get(field.name)}
        )


def _parts(ports: Ports | None) -> Ports:
    """Ports with nothing but the parts in which layers compute."""
    if ports is None:
        return Ports()
    return Ports(feed_forward_chunks=ports.feed_forward_chunks, attention_in_parts=ports.attention_in_parts)


LOWEST, HIGHEST = -1.0, 1.5
"""Bounds of a hint's numbers. Inpainting ControlNets mark with -1 what is to be drawn, and bicubic resizing overshoots
a little; pixels from 0 to 255 lie outside."""


def check_hint(hint: Tensor, channels: int, factor: int, dtype: torch.dtype) -> None:
    """Checks the shape, type and, on CPU, the values of a hint. Errors: `InvalidInput`."""
    shape = list(hint.shape)
    if hint.ndim != 4 or hint.shape[1] != channels:
        remedy = "add the batch axis, and give the picture as many channels as the network takes"
        raise InvalidInput("hint", shape, f"[batch, {channels}, height, width]", remedy)
    if 0 in hint.shape or hint.shape[2] % factor or hint.shape[3] % factor:
        raise InvalidInput("hint", shape, f"height and width in whole multiples of {factor}", "resize it")
    if hint.dtype != dtype:
        raise InvalidInput("hint", hint.dtype, f"the network's type {dtype}", f"use hint.to({dtype})")
    if torch.compiler.is_compiling() or hint.device.type != "cpu":
        return
    low, high = hint.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = int((~torch.isfinite(hint)).sum())
        raise InvalidInput("hint", f"non-finite in {bad} of {hint.numel()} values", "finite numbers in [0, 1]")
    if low < LOWEST or high > HIGHEST:
        raise InvalidInput("hint", f"{low:g} to {high:g}", "numbers in [0, 1]", "divide 8-bit pixels by 255")
