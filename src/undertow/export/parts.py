"""What of a model is exported: each network as a part, with example inputs and which of their sizes may vary."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.text_stack import TextStack
from undertow.errors import InvalidInput
from undertow.export.calls import (
    DecoderCall,
    EncoderCall,
    TextCall,
    UNetCall,
    traceable_text,
    traceable_unet,
    traceable_vae,
)
from undertow.export.inputs import (
    Input,
    Sizes,
    Tensors,
    examples,
    feature_map,
    lora_inputs,
    network_inputs,
    reference_inputs,
    residual_inputs,
    token_ids,
)
from undertow.limits import PIXELS
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL

TOKENS = 77
"""Of the example text, where the model has no text encoder to ask."""

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What files are made for. size: of pictures, in pixels; `None` for the model's own. rows: of a forward of the
    U-Net; guidance needs two for a picture. dynamic: rows, sizes and tokens are free, and those here are examples.
    controlnet: inputs for the residuals of a ControlNet. reference_tokens: inputs for this many keys and values of
    reference pictures (IP-Adapter). lora_rank: inputs for a LoRA of this rank. Errors: `InvalidInput`."""

    size: Size | None = None
    rows: int = 2
    dynamic: bool = False
    controlnet: bool = False
    reference_tokens: int = 0
    lora_rank: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("reference_tokens", 0), ("lora_rank", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(name, getattr(self, name), f"at least {least}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A network that becomes one file.

    module: what is written, called with `inputs` in their order. reference: the model's own network, called alike.
    outputs: their names. dtype: of inputs and weights. stored: of the weights in the file. free: for each input, names
    of the axes that may have another size. least: cells of a map, along each side, below which it cannot be halved.
    scale: pixels of a cell, where sizes are in pixels. other: inputs of other sizes, where there are free axes.
    """

    name: str
    module: nn.Module
    reference: nn.Module
    inputs: Tensors
    outputs: tuple[str, ...]
    dtype: torch.dtype
    stored: torch.dtype
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    least: int = 1
    scale: int = 1
    other: Tensors | None = None


@dataclass(frozen=True, kw_only=True)
class Types:
    """dtype: that a file computes in. stored: of the weights in it."""

    dtype: torch.dtype
    stored: torch.dtype


def parts_of(model: LoadedModel, choices: Choices, types: Types) -> list[Part]:
    """The U-Net, and the text encoders and both halves of the autoencoder where the model has them.

    Errors: `InvalidInput` for choices that the model cannot follow; `MissingComponent` without a U-Net.
    """
    unet = model.require_unet()
    height, width = _cells(unet, choices, 1 if model.vae is None else model.vae.config.factor)
    tokens = TOKENS if model.text is None else model.text.encoders[0].config.positions
    found = [_unet_part(unet, choices, Sizes(choices.rows, height, width, tokens), types)]
    if model.text is not None:
        found.append(_text_part(model.text, choices, types))
    if model.vae is not None:
        # As the engine has it: what overflows in float16 is computed in float32.
        overflows = types.dtype == torch.float16 and model.vae.config.force_upcast
        own = Types(dtype=torch.float32, stored=torch.float32) if overflows else types
        found += _vae_parts(model.vae, choices, Sizes(2 if choices.dynamic else 1, height, width), own)
    return found


def _cells(unet: UNet, choices: Choices, factor: int) -> Size:
    if choices.size is None:
        return unet.config.sample_size, unet.config.sample_size
    height, width = choices.size
    if min(choices.size) < 1 or height % factor or width % factor:
        raise InvalidInput("size", f"{width}x{height}", f"multiples of {factor} pixels for this model")
    PIXELS.require("size", height * width, f"{width}x{height}")
    return height // factor, width // factor


def _unet_part(unet: UNet, choices: Choices, sizes: Sizes, types: Types) -> Part:
    dtype = types.dtype
    inputs = network_inputs(unet, dtype)
    if not unet.config.cross_attentions():
        asked = {"controlnet": choices.controlnet, "reference_tokens": choices.reference_tokens}
        for name in (name for name, wanted in asked.items() if wanted):
            raise InvalidInput(name, asked[name], "nothing for a model without text", "it has no such adapters")
    if choices.controlnet:
        inputs |= residual_inputs(unet, dtype)
    if choices.reference_tokens:
        inputs |= reference_inputs(unet, choices.reference_tokens, dtype)
    if choices.lora_rank:
        inputs |= lora_inputs(unet, choices.lora_rank, dtype)
    network = traceable_unet(unet, dtype, choices.lora_rank)
    own = traceable_unet(unet, unet.dtype, choices.lora_rank) if choices.lora_rank else unet
    names = tuple(inputs)
    calls, least = (UNetCall(network, names), UNetCall(own, names)), 2 ** (len(unet.config.levels) - 1) + 1
    return _part("unet", *calls, inputs, sizes, choices, types, ("prediction",), least)


def _text_part(stack: TextStack, choices: Choices, types: Types) -> Part:
    several = len(stack.encoders) > 1
    inputs = {
        f"ids_{index + 1}" if several else "ids": token_ids(encoder.config.positions, encoder.config.vocabulary)
        for index, encoder in enumerate(stack.encoders)
    }
    copies = [traceable_text(encoder, types.dtype) for encoder in stack.encoders]
    outputs = ("context",) if stack.pooled_width is None else ("context", "pooled")
    calls = TextCall(stack, copies), TextCall(stack, stack.encoders)
    return _part("text_encoder", *calls, inputs, Sizes(choices.rows, 0, 0), choices, types, outputs)


def _vae_parts(vae: AutoencoderKL, choices: Choices, sizes: Sizes, types: Types) -> list[Part]:
    network, config = traceable_vae(vae, types.dtype), vae.config
    latents = {"latents": feature_map(config.latent_channels, types.dtype)}
    pixels = {"pixels": feature_map(config.in_channels, types.dtype, scale=config.factor)}
    decoder, encoder = (DecoderCall(network), DecoderCall(vae)), (EncoderCall(network), EncoderCall(vae))
    return [
        _part("vae_decoder", *decoder, latents, sizes, choices, types, ("pixels",), 2),
        _part("vae_encoder", *encoder, pixels, sizes, choices, types, ("mean", "deviation"), 2, config.factor),
    ]


def _part(
    name: str,
    module: nn.Module,
    reference: nn.Module,
    inputs: Mapping[str, Input],
    sizes: Sizes,
    choices: Choices,
    types: Types,
    outputs: tuple[str, ...],
    least: int = 1,
    scale: int = 1,
) -> Part:
    found = Part(
        name=name,
        module=module.eval(),
        reference=reference.eval(),
        inputs=examples(inputs, sizes),
        outputs=outputs,
        dtype=types.dtype,
        stored=types.stored,
    )
    if not choices.dynamic:
        return found
    other = Sizes(sizes.rows + 1, sizes.height + 2, sizes.width + 4, 2 * sizes.tokens)
    free = {name: one.free for name, one in inputs.items()}
    return replace(found, free=free, least=least, scale=scale, other=examples(inputs, other))
