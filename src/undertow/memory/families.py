"""The published families by name, as what a forecast is made of."""

from collections.abc import Callable
from dataclasses import replace

from undertow.adapters.control.config import ControlNetConfig
from undertow.errors import UnknownCheckpoint
from undertow.memory.work import Subject, TextNetwork, VAENetwork
from undertow.unet.config import UNetConfig
from undertow.unet.presets import PRESETS

VAE = VAENetwork()
VAE_XL = VAENetwork(force_upcast=True)

CLIP_L = TextNetwork(width=768, layers=12, heads=12, intermediate=3072, activation="quick_gelu")
OPENCLIP_H = TextNetwork(width=1024, layers=23, heads=16, intermediate=4096, activation="gelu")
OPENCLIP_G = TextNetwork(width=1280, layers=32, heads=20, intermediate=5120, activation="gelu", projection=1280)

_TEXT = {768: (CLIP_L,), 1024: (OPENCLIP_H,), 1280: (OPENCLIP_G,), 2048: (CLIP_L, OPENCLIP_G)}


def family(name: str) -> Subject:
    """The networks of a published family. Errors: `UnknownCheckpoint` for a name that is none."""
    config: Callable[[], UNetConfig] | None = PRESETS.get(name)
    if config is None:
        raise UnknownCheckpoint(name, "no published family", f"families: {', '.join(PRESETS)}")
    unet = config()
    if unet.context_dim is None:
        return Subject(name=name, unet=unet)
    vae = VAE if unet.context_dim in (768, 1024) else VAE_XL
    # A ControlNet sees the latents alone, also where the U-Net sees a mask beside them.
    controlnet = None if unet.guidance_dim is not None else ControlNetConfig(unet=replace(unet, in_channels=4))
    return Subject(name=name, unet=unet, vae=vae, text_encoders=_TEXT[unet.context_dim], controlnet=controlnet)
