"""Text to pictures: encode, sample, decode, each its own stage with its own time and its own place in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.checkpoints.model import LoadedModel
from undertow.diffusion.grids import sigma_grid
from undertow.engine.conditioning import Branches, Conditioner
from undertow.engine.events import Observer, unobserved
from undertow.engine.request import GenerationRequest, GenerationResult, Report
from undertow.engine.sampling import Sampling
from undertow.engine.watch import Debug, Watch
from undertow.errors import InvalidInput
from undertow.sampling.catalogue import find_sampler
from undertow.sampling.noise import NoiseSource
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.plan import smallest_budget
from undertow.vae.precision import CLAMP, decode_safely
from undertow.vae.program import decode_program

LOW_VRAM_DECODE_BYTES = 512 * 2**20
"""Activations that decoding may hold at once with `low_vram`, or the least that the picture's size needs."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, none of which changes what is asked for.

    low_vram: keep only the network at work on the accelerator, and decode within `LOW_VRAM_DECODE_BYTES`; slower, the
    same pictures. vae_clamp: cut the decoder's activations at float16's range, which changes pictures and is counted.
    observe: called at each step.
    """

    low_vram: bool = False
    vae_clamp: bool = False
    debug: Debug = Debug()
    observe: Observer = unobserved


@torch.inference_mode()
def generate(
    model: LoadedModel, request: GenerationRequest, options: RunOptions, latents: Tensor | None = None
) -> GenerationResult:
    """The pictures of one request.

    latents: standard normal noise to start from, [count, channels, height / factor, width / factor], in place of that
    of the seeds. Errors: `InvalidInput` before any work; `MissingComponent` names what the checkpoint lacks;
    `NonFiniteError` when watching for NaN.
    """
    unet, vae, text = model.require_unet(), model.require_vae(), model.require_text(request.clip_skip)
    size = _size(request, unet, vae)
    watch = Watch(debug=options.debug)
    find_sampler(request.sampler, model.schedule.path)
    sigmas = sigma_grid(request.schedule, model.schedule, request.steps)
    noise = NoiseSource(request.seeds)
    start = _start(latents, noise, _latent_shape(size, vae))
    conditioner = Conditioner(
        text=text,
        config=unet.config,
        request=request,
        size=size,
        dtype=unet.dtype,
        device=unet.device,
    )
    with watch.stage("text"):
        branches = conditioner.branches()
    _see_text(branches, watch)
    sampling = Sampling(
        unet=unet,
        parameterization=model.parameterization,
        schedule=model.schedule,
        request=request,
        branches=branches,
        sigmas=sigmas,
        watch=watch,
        observe=options.observe,
    )
    start = model.schedule.path.pure_noise(start, sigmas[0]).to(unet.device)
    with watch.stage("denoise"):
        result = sampling.run(start, noise)
    with watch.stage("decode"):
        images, notes = _decode(vae, result, options, watch)
    report = Report(
        request=request,
        model=str(model.path),
        size=size,
        sigmas=tuple(sigmas),
        seconds=dict(watch.seconds),
        decisions=(*model.report.notes, *conditioner.decisions, *notes),
        debug=tuple(watch.lines),
    )
    return GenerationResult(images=images, latents=result, report=report)


def _see_text(branches: Sequence[Branches], watch: Watch) -> None:
    """Every text once, under the names of burn-models' debug log."""
    seen: set[int] = set()
    for step in branches:
        for name, row in zip(step.names, step.rows, strict=True):
            for kind, tensor in (("context", row.context), ("pooled", row.pooled)):
                if tensor is not None and tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    watch.see(f"text_{kind}_{name}", tensor)


def _size(request: GenerationRequest, unet: UNet, vae: AutoencoderKL) -> tuple[int, int]:
    factor = vae.config.factor
    if request.size is None:
        side = unet.config.sample_size * factor
        return side, side
    height, width = request.size
    if min(height, width) < factor or height % factor or width % factor:
        nearest = [max(factor, round(length / factor) * factor) for length in request.size]
        raise InvalidInput(
            "size", f"{width}x{height}", f"multiples of {factor} pixels", f"the nearest is {nearest[1]}x{nearest[0]}"
        )
    return request.size


def _latent_shape(size: tuple[int, int], vae: AutoencoderKL) -> tuple[int, int, int]:
    return vae.config.latent_channels, size[0] // vae.config.factor, size[1] // vae.config.factor


def _start(latents: Tensor | None, noise: NoiseSource, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal latents, those of the seeds unless given."""
    if latents is None:
        return noise.draw(shape)
    expected = [len(noise), *shape]
    if list(latents.shape) != expected:
        raise InvalidInput("latents", list(latents.shape), f"{expected}: one for each picture, at this size")
    return latents.float()


def _decode(
    vae: AutoencoderKL, latents: Tensor, options: RunOptions, watch: Watch
) -> tuple[list[Image.Image], list[str]]:
    watch.see("vae_input", latents)
    budget = None
    if options.low_vram:
        program = decode_program(vae, (latents.shape[2], latents.shape[3]))
        budget = max(LOW_VRAM_DECODE_BYTES, smallest_budget(program, vae.dtype.itemsize))
    decoded = decode_safely(
        vae,
        vae.config.latent_space.from_model(latents.float()),
        budget_bytes=budget,
        clamp=CLAMP if options.vae_clamp else None,
    )
    watch.see("vae_output", decoded.pixels)
    return to_images(decoded.pixels), decoded.report.notes()


def to_images(pixels: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """Pictures from pixels in [-1, 1]: (x + 1) / 2, clamped and rounded to 8 bits, as all peers do (R154)."""
    levels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in levels]
