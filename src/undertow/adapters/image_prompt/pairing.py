"""Which image encoder an IP-Adapter reads, by the width of the features that it wants."""

from collections.abc import Mapping

from undertow.adapters.image_prompt.projection import Wants
from undertow.encoders.image_config import PUBLISHED_VISION

_PLACES: Mapping[str, str] = {
    "OpenCLIP ViT-H/14": "the folder models/image_encoder of h94/IP-Adapter",
    "OpenCLIP ViT-bigG/14": "the folder sdxl_models/image_encoder of h94/IP-Adapter",
    "OpenAI CLIP ViT-L/14": "the folder of openai/clip-vit-large-patch14",
}


def encoder_for(wants: Wants, feature_dim: int) -> str:
    """The encoder to give, in words: a published one with where it lies, or what its width must be."""
    for name, config in PUBLISHED_VISION.items():
        if feature_dim == (config.projection if wants == "pooled" else config.width):
            return f"{name} ({_PLACES[name]})"
    part = "projection is" if wants == "pooled" else "hidden states are"
    return f"an encoder whose {part} {feature_dim} wide"
