"""The guidance of a request as `undertow.diffusion.guidance` runs it."""

from undertow.diffusion.guidance import ClassifierFree, Guidance
from undertow.engine.request import GenerationRequest
from undertow.unet.config import UNetConfig


def guidance_of(request: GenerationRequest, config: UNetConfig, *, edits: bool) -> Guidance:
    """Its methods in order. edits: InstructPix2Pix, guided by the picture as well."""
    del config, edits
    return Guidance(methods=(ClassifierFree(scale=request.guidance_scale),))
