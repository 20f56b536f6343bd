"""Networks with tensors alone as inputs and outputs, which is all that exported files have, in the order of their part.

They are networks of their own: with the weights in the type of the file, with attention as the one operation that every
format knows, and without what is chosen for this machine.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from undertow.attention.chosen import kernel_named
from undertow.encoders.clip import TextEncoder
from undertow.encoders.text_stack import TextStack
from undertow.nn.adaptable import Conv2d, Linear, Run, WeightRows
from undertow.nn.attention import AttentionProjections, ImageTokens
from undertow.nn.quantized import dequantize_layers, plain_weights
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.latent_values import latents_from_model, latents_to_model

LORA_DOWN, LORA_UP = ".lora_down", ".lora_up"
"""Behind the name of a layer: inputs that hold its low-rank update."""

KEYS, VALUES, GAIN = ".keys", ".values", "reference_gain"
"""Inputs of reference pictures: behind the name of a cross-attention, and how strongly they act in each row."""

RESIDUAL, MIDDLE = "residual_", "residual_middle"
"""Inputs of a ControlNet: before the number of a stored skip connection, and of the middle block."""

FIELDS = tuple(field.name for field in fields(Conditioning))

WHOLE = (Run(start=0, stop=sys.maxsize, slot=0, gain=1.0),)
"""All rows use the first slot, however many they are."""


class UNetCall(nn.Module):
    """A U-Net's prediction. names: of the inputs, in their order: `latents`, `timesteps`, fields of `Conditioning`, and
    those of the ports that the names above describe."""

    def __init__(self, network: UNet, names: Sequence[str]):
        super().__init__()
        self.inner = _Predict(network)
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        conditioning = Conditioning(**{name: given[name] for name in FIELDS if name in given})
        slots = _slots(given)
        weights = None
        if slots:
            # Runs decide what is computed; the two tensors are read where there are none.
            none = given["latents"].new_zeros(1, 1)
            weights = WeightRows(slots=none.long(), gains=none, runs=WHOLE)
        ports = Ports(weights=weights, residuals=_residuals(given), image=_reference(given))
        inputs = (given["latents"], given["timesteps"], conditioning, ports)
        return torch.func.functional_call(self.inner, slots, inputs) if slots else self.inner(*inputs)


class _Predict(nn.Module):
    """`UNet.predict` as a forward, whose buffers can be exchanged for a call."""

    def __init__(self, network: UNet):
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, ports: Ports) -> Tensor:
        return self.network.predict(latents, timesteps, conditioning, ports).prediction


def _slots(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Updates by the names of the buffers that they take the place of."""
    ends = {LORA_DOWN: "down", LORA_UP: "up"}
    return {
        f"network.{name.removesuffix(end)}.slots.{buffer}": tensor[None]
        for name, tensor in given.items()
        for end, buffer in ends.items()
        if name.endswith(end)
    }


def _residuals(given: Mapping[str, Tensor]) -> Residuals | None:
    if MIDDLE not in given:
        return None
    count = sum(name.startswith(RESIDUAL) for name in given) - 1
    return Residuals(skips=tuple(given[f"{RESIDUAL}{index}"] for index in range(count)), middle=given[MIDDLE])


def _reference(given: Mapping[str, Tensor]) -> dict[str, tuple[ImageTokens, ...]] | None:
    if GAIN not in given:
        return None
    sites = [name.removesuffix(KEYS) for name in given if name.endswith(KEYS)]
    return {
        site: (ImageTokens(keys=given[site + KEYS], values=given[site + VALUES], gain=given[GAIN]),) for site in sites
    }


class TextCall(nn.Module):
    """The encoders of a text stack: token ids of each, [rows, tokens], to the context, and to the pooled vector where
    one is read. A long prompt's chunks are rows, whose contexts are put one behind the other."""

    def __init__(self, stack: TextStack, encoders: Sequence[TextEncoder]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.selections = stack.selections

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        each = (self.encoders, tensors, self.selections)
        read = [encoder(one, selection) for encoder, one, selection in zip(*each, strict=True)]
        pooled = [one.pooled for one in read if one.pooled is not None]
        context = torch.cat([one.tokens for one in read], dim=-1)
        return (context, torch.cat(pooled, dim=-1)) if pooled else (context,)


class DecoderCall(nn.Module):
    """Latents, as the U-Net makes them, to pixels in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.decoder, self.conv, self.space = vae.decoder, vae.post_quant_conv, vae.config.latent_space

    def forward(self, *tensors: Tensor) -> Tensor:
        (latents,) = tensors
        own = latents_from_model(self.space, latents)
        return self.decoder(own if self.conv is None else self.conv(own))


class EncoderCall(nn.Module):
    """Pixels in [-1, 1] to latents, as the U-Net wants them: the mean of each, and its standard deviation."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.encoder, self.conv, self.space = vae.encoder, vae.quant_conv, vae.config.latent_space
        self.scale = replace(self.space, shift=0.0, mean=None)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        (pixels,) = tensors
        moments = self.encoder(pixels)
        mean, logvar = (moments if self.conv is None else self.conv(moments)).chunk(2, dim=1)
        deviation = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        return latents_to_model(self.space, mean), latents_to_model(self.scale, deviation)


def traceable_unet(network: UNet, dtype: torch.dtype, lora_rank: int = 0) -> UNet:
    """The network in `dtype`. lora_rank: of updates that its layers take as inputs."""
    kernel = kernel_named("sdpa", float32_logits=network.config.upcast_attention)
    with torch.device("meta"):
        found = UNet(network.config, kernel).requires_grad_(False).eval()
    found.load_state_dict(_weights(network, dtype), assign=True)
    if lora_rank:
        for _, layer in lora_layers(found):
            layer.allocate_slots(1, lora_rank)
            assert layer.slots is not None
            layer.slots.ranks = [lora_rank]
    return found


def lora_layers(network: UNet) -> list[tuple[str, Linear | Conv2d]]:
    """The layers that a LoRA may change, by name."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, Linear | Conv2d)]


def traceable_vae(vae: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder in `dtype`, whose attention sees all queries at once: a file cannot count them first."""
    kernel = kernel_named("sdpa")
    with torch.device("meta"):
        found = AutoencoderKL(vae.config, kernel).requires_grad_(False).eval()
    found.load_state_dict(_weights(vae, dtype), assign=True)
    for module in found.modules():
        if isinstance(module, AttentionProjections):
            module.kernel = kernel
    return found


def traceable_text(encoder: TextEncoder, dtype: torch.dtype) -> TextEncoder:
    """The encoder in `dtype`."""
    clip = dequantize_layers(copy.deepcopy(encoder.clip)).to("cpu", dtype)
    projection = None if encoder.projection is None else copy.deepcopy(encoder.projection).to("cpu", dtype)
    made = TextEncoder(encoder.kind, encoder.config, clip, projection, encoder.tokenizer)
    return made.requires_grad_(False).eval()


def _weights(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """In rows, the order that every format has."""
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in plain_weights(network).items()}
