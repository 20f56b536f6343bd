"""Checks whether a network supports the guidance that a request asks for."""

from undertow.diffusion.guidance import (
    DualGuidance,
    During,
    EmbeddedScale,
    Guidance,
    Method,
    PerturbedAttention,
    SelfAttention,
    SmoothedEnergy,
)
from undertow.errors import InvalidInput
from undertow.unet.config import UNetConfig
from undertow.unet.perturbation import self_attentions_in


def check_guidance(config: UNetConfig, guidance: Guidance) -> None:
    """Errors: `InvalidInput` for a method that needs parts which this network lacks, before anything runs."""
    for method in guidance.methods:
        _check_method(config, method.method if isinstance(method, During) else method)


def _check_method(config: UNetConfig, method: Method) -> None:
    match method:
        case PerturbedAttention(layers=layers) | SmoothedEnergy(layers=layers):
            self_attentions_in(config, layers)
        case SelfAttention() if config.middle.attention is None:
            raise InvalidInput(
                "guidance", "SelfAttention", "a network with attention in the middle", "use PerturbedAttention"
            )
        case EmbeddedScale() if config.guidance_dim is None:
            raise InvalidInput(
                "guidance", "EmbeddedScale", "a network distilled with its guidance scale (LCM)", "use ClassifierFree"
            )
        case DualGuidance() if config.in_channels != 2 * config.out_channels:
            raise InvalidInput(
                "guidance",
                "DualGuidance",
                f"a network that sees a picture to edit, {2 * config.out_channels} channels wide (InstructPix2Pix)",
                f"this one has {config.in_channels}; use ClassifierFree",
            )
        case _:
            pass
