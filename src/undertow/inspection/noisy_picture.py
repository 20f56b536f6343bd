"""Where a network is asked what adapters do to it: a picture that it drew itself, under several levels of noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.manager import AdapterManager
from undertow.adapters.pictures import LatentGrid
from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.engine.conditioning import Conditioner
from undertow.engine.engine import Engine
from undertow.engine.request import GenerationRequest
from undertow.engine.rows import Row
from undertow.errors import InvalidInput

LEVELS = (0.8, 0.5, 0.2)
"""Shares of the levels of noise that the model was trained at, from none to all: composition, form, detail."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyPicture:
    """latents: as the network receives them, a row for each level of noise."""

    model: LoadedModel
    manager: AdapterManager
    request: GenerationRequest
    latents: Float[Tensor, "levels channels height width"]
    timesteps: Float32[Tensor, "levels"]

    @classmethod
    @torch.inference_mode()
    def draw(cls, model: LoadedModel, manager: AdapterManager, request: GenerationRequest) -> "NoisyPicture":
        """Draws the request's first picture without any adapter. Errors: those of `generate`; `InvalidInput` for models
        that read a picture besides."""
        unet, vae = model.require_unet(), model.require_vae()
        if unet.config.in_channels != vae.config.latent_channels:
            raise InvalidInput("model", f"one with {unet.config.in_channels} input channels", "a text-to-image model")
        request = replace(request, adapters=(), count=1)
        clean = Engine(model, adapters=manager).submit(request).result().latents.to(unet.device)
        preconditioning = Preconditioning(
            parameterization=model.parameterization, schedule=model.schedule, network_dtype=unet.dtype
        )
        trained = len(model.schedule) - 1
        places = torch.tensor([level * trained for level in LEVELS], dtype=torch.float64)
        sigmas = model.schedule.timestep_to_sigma(places)
        generator = torch.Generator().manual_seed(request.seed)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        count = len(LEVELS)
        noisy = model.schedule.path.add_noise(
            clean.float().expand(count, -1, -1, -1), noise.float().expand(count, -1, -1, -1), sigmas
        )
        latents, timesteps = preconditioning.inputs(noisy, sigmas)
        return cls(model=model, manager=manager, request=request, latents=latents, timesteps=timesteps)

    @torch.inference_mode()
    def rows(self, adapters: Sequence[Adapter]) -> list[Row]:
        """A row for each level, with adapters that act at their largest scale, whatever steps they are for. Errors:
        those of `AdapterManager.resolve_each` and `tile`."""
        unet, factor = self.model.require_unet(), self.model.require_vae().config.factor
        height, width = self.latents.shape[2:]
        always = [replace(one, scale=max(one.scales, key=abs), start=0.0, end=1.0) for one in adapters]
        resolved = self.manager.resolve_each(always)
        row_adapters = self.manager.tile(resolved, LatentGrid(cells=(height, width), factor=factor)).row(0, 1)
        text = self.manager.text(self.model.require_text(self.request.clip_skip), resolved, 1)
        conditioner = Conditioner(
            text=text,
            region_texts=(),
            config=unet.config,
            request=self.request,
            size=(height * factor, width * factor),
            needs_unconditional=False,
            dtype=unet.dtype,
            device=unet.device,
        )
        conditioning, _ = conditioner.branches(1)[0].conditional[0]
        return [
            Row(unet=unet, latents=latents, timestep=timestep, conditioning=conditioning, adapters=row_adapters)
            for latents, timestep in zip(self.latents.split(1), self.timesteps.split(1), strict=True)
        ]
