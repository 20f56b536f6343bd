"""Pictures that a request brings, as its model reads them: to start from, to keep parts of, to see while drawing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.image_inputs import ImageInputs
from undertow.engine.passes import Extra, InpaintMask, Latents
from undertow.engine.request import GenerationRequest
from undertow.pictures.pixels import mask_for_latents, to_map, to_mask, to_pixels
from undertow.vae.latent_values import latents_from_model, latents_to_model
from undertow.vae.precision import encode_safely


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImages:
    """latents: of the image, as the U-Net sees them. The rest as in `Pass`."""

    latents: Latents | None = None
    inpaint_mask: InpaintMask | None = None
    extra: Extra | None = None
    without_image: Extra | None = None


def encode_images(
    request: GenerationRequest, image_inputs: ImageInputs, model: LoadedModel, size: tuple[int, int]
) -> EncodedImages:
    """The request's pictures at this size, encoded.

    Without a mask, an inpainting model reads a white one and the gray picture that it leaves, as in A1111
    (modules/processing.py, txt2img_image_conditioning).
    """
    if image_inputs.kind == "inpainting":
        return _for_inpainting(request, model, size)
    depth = None if request.depth is None else _depth(request, model, size)
    if request.image is None:
        return EncodedImages(extra=depth)
    pixels = to_pixels(request.image, size)
    latents = image_latents(model, pixels)
    factor = model.require_vae().config.factor
    match image_inputs.kind:
        case "editing":
            # InstructPix2Pix reads the autoencoder's own latents, without their scale (arXiv:2211.09800, and its code).
            own = latents_from_model(model.require_vae().config.latent_space, latents)
            return EncodedImages(latents=latents, extra=own, without_image=torch.zeros_like(own))
        case _:
            inpaint_mask = None
            if request.mask is not None:
                inpaint_mask = InpaintMask(latents=latents, mask=mask_for_latents(to_mask(request.mask, size), factor))
            return EncodedImages(latents=latents, inpaint_mask=inpaint_mask, extra=depth)


def _for_inpainting(request: GenerationRequest, model: LoadedModel, size: tuple[int, int]) -> EncodedImages:
    """Mask and masked picture, for the channels beside the latents."""
    mask = torch.ones(1, 1, *size) if request.mask is None else to_mask(request.mask, size)
    pixels = None if request.image is None else to_pixels(request.image, size)
    masked = image_latents(model, torch.zeros(1, 3, *size) if pixels is None else pixels * (mask < 0.5))
    hard = F.interpolate((mask >= 0.5).float(), size=masked.shape[2:])
    latents = None if pixels is None else image_latents(model, pixels)
    return EncodedImages(latents=latents, extra=torch.cat([hard.to(masked), masked], dim=1))


def image_latents(model: LoadedModel, pixels: Tensor) -> Latents:
    """The most probable latents of pixels in [-1, 1], as the U-Net sees them, in float32 on its device."""
    vae = model.require_vae()
    encoded = encode_safely(vae, pixels.to(vae.device)).posterior.mode()
    return latents_to_model(vae.config.latent_space, encoded).to(model.require_unet().device)


def _depth(request: GenerationRequest, model: LoadedModel, size: tuple[int, int]) -> Extra:
    """A map in [-1, 1] at the latents' size, as Stable Diffusion 2 depth reads it."""
    assert request.depth is not None  # asked before
    factor = model.require_vae().config.factor
    gray = to_map(request.depth, size)
    small = F.interpolate(gray, size=(size[0] // factor, size[1] // factor), mode="bicubic", align_corners=False)
    low, high = small.amin(), small.amax()
    return (2 * (small - low) / (high - low).clamp(min=1e-6) - 1).to(model.require_unet().device)
