"""Which image encoder an IP-Adapter reads, by the width of the features that it wants."""

from collections.abc import Mapping

from undertow.adapters.image_prompt.projection import Wants
from undertow.encoders.image_config import PUBLISHED_VISION

PUBLISHED_AT: Mapping[str, str] = {
    "OpenCLIP ViT-H/14": "h94/IP-Adapter/models/image_encoder/model.safetensors",
    "OpenCLIP ViT-bigG/14": "h94/IP-Adapter/sdxl_models/image_encoder/model.safetensors",
    "OpenAI CLIP ViT-L/14": "openai/clip-vit-large-patch14/model.safetensors",
}
"""Files on the Hub, as `load_image_encoder` takes them."""


def encoder_for(wants: Wants, feature_dim: int) -> str:
    """The encoder to give, in words: a published one with its file on the Hub, or what its width must be."""
    for name, config in PUBLISHED_VISION.items():
        if feature_dim == (config.projection if wants == "pooled" else config.width):
            return f"{name} ({PUBLISHED_AT[name]})"
    part = "projection is" if wants == "pooled" else "hidden states are"
    return f"an encoder whose {part} {feature_dim} wide"
