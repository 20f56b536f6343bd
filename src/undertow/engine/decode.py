"""Decoding: latents to pictures, previews, and to what a second pass over a larger picture starts from."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.images import image_latents
from undertow.engine.layout import Layout
from undertow.engine.parts import HighResolution
from undertow.engine.passes import Latents, UpscaledLatents
from undertow.engine.request import GenerationRequest
from undertow.engine.watch import Watch
from undertow.memory.keeper import Keeper
from undertow.memory.ladder import Economy
from undertow.pictures.pixels import pasted, to_images, to_pixels
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.latent_values import latents_as_picture, latents_from_model
from undertow.vae.plan import smallest_budget
from undertow.vae.precision import CLAMP, decode_safely, dtype_to_compute_in
from undertow.vae.program import decode_program

LOW_VRAM_DECODE_BYTES = 512 * 2**20
"""Activations that decoding may hold at once with `low_vram`, or the least that the picture's size needs."""


@dataclass(kw_only=True, eq=False)
class Decoder:
    """Decodes the pictures of one request. low_vram: within `LOW_VRAM_DECODE_BYTES`. clamp: cut the activations at
    float16's range. memory: has the VAE in memory meanwhile. economy: what is done to need less. notes: what was
    decided on the way."""

    model: LoadedModel
    request: GenerationRequest
    watch: Watch
    low_vram: bool = False
    clamp: bool = False
    memory: Keeper = field(default_factory=Keeper)
    economy: Economy = Economy()

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def picture(self, latents: Latents, index: int = 0) -> Image.Image:
        """The finished picture, with what the mask keeps put back. index: of the request's pictures."""
        with self.watch.stage("decode"):
            image, notes = self._decode(latents, index)
        self.notes += [note for note in notes if note not in self.notes]
        request = self.request
        if request.paste and request.image is not None and request.mask is not None:
            return pasted(image, request.image, request.mask)
        return image

    def preview(self, denoised: Latents) -> Image.Image:
        """A picture of an estimate: small and rough where the model's latents have a linear preview, else decoded."""
        space = self.model.require_vae().config.latent_space
        if space.preview_factors is None:
            return self._decode(denoised)[0]
        return Image.fromarray(latents_as_picture(space, denoised)[0].cpu().numpy())

    def upscaled(self, latents: Latents, how: HighResolution, cells: tuple[int, int]) -> UpscaledLatents:
        """Finished latents at the size (height, width), in cells, of the second pass."""
        if how.upscale == "latent":
            return F.interpolate(latents.float(), size=cells, mode="bilinear", align_corners=False)
        image, _ = self._decode(latents)
        vae = self.model.require_vae()
        factor = vae.config.factor
        with self.memory.using(vae, self.economy):
            return image_latents(self.model, to_pixels(image, (cells[0] * factor, cells[1] * factor))).float()

    def _decode(self, latents: Latents, picture: int = 0) -> tuple[Image.Image, list[str]]:
        vae = self.model.require_vae()
        self.watch.see("vae_input", latents)
        # A seamless picture is decoded with its own other side around it, which is cut off again.
        ring = Layout.whole((latents.shape[2], latents.shape[3]), self.request.seamless)
        seen = ring.split_tiles(latents_from_model(vae.config.latent_space, latents.float()))[0]
        with self.memory.using(vae, self.economy), self.watch.decoding(picture) as observe:
            decoded = decode_safely(
                vae,
                seen,
                budget_bytes=self._budget_bytes(vae, seen),
                clamp=CLAMP if self.clamp else None,
                observe=observe,
            )
        pixels = ring.enlarged(vae.config.factor).merge_tiles([decoded.pixels])
        self.watch.see("vae_output", pixels)
        return to_images(pixels)[0], decoded.report.notes()

    def _budget_bytes(self, vae: AutoencoderKL, latents: Tensor) -> int | None:
        asked = LOW_VRAM_DECODE_BYTES if self.low_vram else None
        if self.economy.decode_bytes is not None:
            asked = self.economy.decode_bytes if asked is None else min(asked, self.economy.decode_bytes)
        if asked is None:
            return None
        program = decode_program(vae, (latents.shape[2], latents.shape[3]), dtype_to_compute_in(vae).dtype)
        return max(asked, smallest_budget(program))
