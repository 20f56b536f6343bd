"""How files spell the names of layers, whatever the model. No torch."""

UNET_PREFIXES = (
    "lora_unet_",
    "unet.",
    "unet.base_model.model.",
    "base_model.model.unet.",
    "diffusion_model.",
    "model.diffusion_model.",
)
SHARED_PREFIXES = ("", "lycoris_", "base_model.model.")
"""Prefixes that say nothing about the network."""


def flatten(name: str) -> str:
    """How kohya's and LyCORIS' trainers write a dotted name."""
    return name.replace(".", "_")
