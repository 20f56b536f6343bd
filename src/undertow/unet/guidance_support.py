"""Checks whether a network supports the guidance that a request asks for. Imports no torch."""

from collections.abc import Iterable

from undertow.errors import InvalidInput
from undertow.guidance_options.records import (
    DualGuidanceOptions,
    EmbeddedScaleOptions,
    MethodOptions,
    PerturbedAttentionOptions,
    SelfAttentionOptions,
    SmoothedEnergyOptions,
)
from undertow.unet.config import UNetConfig
from undertow.unet.free_u import FreeU, scaled_layers
from undertow.unet.self_attentions import self_attentions_in


def check_guidance(config: UNetConfig, methods: Iterable[MethodOptions | FreeU]) -> None:
    """Errors: `InvalidInput` for a method that needs parts which this network lacks, before anything runs."""
    for method in methods:
        _check_method(config, method)


def _check_method(config: UNetConfig, method: MethodOptions | FreeU) -> None:
    match method:
        case FreeU():
            scaled_layers(config, method)
        case PerturbedAttentionOptions(layers=layers) | SmoothedEnergyOptions(layers=layers):
            self_attentions_in(config, layers)
        case SelfAttentionOptions() if config.middle.attention is None:
            raise InvalidInput(
                "guidance", "SelfAttention", "a network with attention in the middle", "use PerturbedAttention"
            )
        case EmbeddedScaleOptions() if config.guidance_dim is None:
            raise InvalidInput(
                "guidance", "EmbeddedScale", "a network distilled with its guidance scale (LCM)", "use ClassifierFree"
            )
        case DualGuidanceOptions() if config.in_channels != 2 * config.out_channels:
            raise InvalidInput(
                "guidance",
                "DualGuidance",
                f"a network that sees a picture to edit, {2 * config.out_channels} channels wide (InstructPix2Pix)",
                f"this one has {config.in_channels}; use ClassifierFree",
            )
        case _:
            pass
