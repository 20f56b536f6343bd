"""Folders of diffusers, each with its scheduler_config.json, drawn by diffusers and with `sampler="model"`."""

from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.golden.drawn import LATENTS, Drawn, ours, pipeline_of, theirs
from tests.golden.pipelines import SCHEDULE
from tests.services import service_of
from undertow import GenerationResult, UNetService
from undertow.diffusion import SchedulerConfig
from undertow.schedulers.samplers import read_scheduler

SEED, SIDE = 5, 32


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder's scheduler_config.json says, and how it is drawn with. latents: allowed difference of latents."""

    name: str
    fields: dict[str, Any]
    family: str = "sd1"
    steps: int = 5
    guidance: float = 5.0
    latents: float = LATENTS

    @property
    def scheduler(self) -> Any:
        prediction = {"prediction_type": "v_prediction"} if self.family == "sd2" else {}
        return getattr(diffusers, self.name)(**SCHEDULE, **prediction, **self.fields)

    @property
    def config(self) -> dict[str, Any]:
        return {"_class_name": self.name, **self.scheduler.config}


OFFSET = {"steps_offset": 1}
FIRST = {"set_alpha_to_one": False, **OFFSET}
LEADING, TRAILING = ({"timestep_spacing": spacing, **OFFSET} for spacing in ("leading", "trailing"))
ZERO_SNR = {"rescale_betas_zero_snr": True, **TRAILING}
PLAIN = {"clip_sample": False}

FOLDERS = {
    # Stable Diffusion 1 and 2 as published: the last level is the first trained one.
    "pndm": Folder(name="PNDMScheduler", fields={"skip_prk_steps": True, **FIRST}),
    "pndm, 1 step": Folder(name="PNDMScheduler", fields={"skip_prk_steps": True, **FIRST}, steps=1),
    "ddim v": Folder(name="DDIMScheduler", fields=PLAIN | FIRST, family="sd2"),
    # SDXL, and what is distilled from it.
    "euler leading": Folder(name="EulerDiscreteScheduler", fields=LEADING, family="sdxl"),
    "lightning": Folder(name="EulerDiscreteScheduler", fields=TRAILING, family="sdxl", steps=4, guidance=1.0),
    "lcm": Folder(name="LCMScheduler", fields={}, steps=4, guidance=1.0),
    "tcd": Folder(name="TCDScheduler", fields={}, steps=4, guidance=1.0),
    "sd turbo, 1 step": Folder(name="EulerDiscreteScheduler", fields=TRAILING, steps=1, guidance=1.0),
    "sd turbo": Folder(name="EulerDiscreteScheduler", fields=TRAILING, steps=4, guidance=1.0),
    "sdxl turbo, 1 step": Folder(
        name="EulerAncestralDiscreteScheduler", fields=TRAILING, family="sdxl", steps=1, guidance=1.0
    ),
    "sdxl turbo": Folder(name="EulerAncestralDiscreteScheduler", fields=TRAILING, family="sdxl", steps=4, guidance=1.0),
    # Zero terminal SNR: diffusers' Euler loses 4096 eps of x in its first step, and its DDIM starts beyond the last
    # finite level.
    "ztsnr euler": Folder(name="EulerDiscreteScheduler", fields=ZERO_SNR, family="sd2", latents=1e-3),
    "ztsnr ddim": Folder(name="DDIMScheduler", fields=PLAIN | ZERO_SNR, family="sd2", latents=1e-3),
    "dpm++ leading": Folder(name="DPMSolverMultistepScheduler", fields=LEADING),
    "dpm++ linspace": Folder(name="DPMSolverMultistepScheduler", fields={}),
    "dpm++ trailing": Folder(name="DPMSolverMultistepScheduler", fields=TRAILING),
    "dpm++ karras": Folder(name="DPMSolverMultistepScheduler", fields={"use_karras_sigmas": True}),
    "unipc": Folder(name="UniPCMultistepScheduler", fields={}),
    "unipc leading": Folder(name="UniPCMultistepScheduler", fields=LEADING | {"solver_order": 3}),
    "unipc karras": Folder(name="UniPCMultistepScheduler", fields={"use_karras_sigmas": True}),
    "euler a": Folder(name="EulerAncestralDiscreteScheduler", fields=LEADING),
    "euler linspace": Folder(name="EulerDiscreteScheduler", fields={}, steps=7),
    "euler karras": Folder(name="EulerDiscreteScheduler", fields=LEADING | {"use_karras_sigmas": True}),
    "heun": Folder(name="HeunDiscreteScheduler", fields=LEADING),
    "lms": Folder(name="LMSDiscreteScheduler", fields={}, latents=1e-3),
    "dpm2": Folder(name="KDPM2DiscreteScheduler", fields=TRAILING),
    "deis": Folder(name="DEISMultistepScheduler", fields={}, latents=1e-3),
    # A step of 1000 // 7 timesteps, between evaluations that are farther apart.
    "ddim trailing, 7 steps": Folder(name="DDIMScheduler", fields=PLAIN | TRAILING, steps=7),
    "ddim linspace": Folder(name="DDIMScheduler", fields=PLAIN | {"timestep_spacing": "linspace", **FIRST}),
}


def service_for(folder: Folder) -> UNetService:
    """A tiny model with the folder's scheduler: as loaded from it, but with networks that are in memory."""
    model, config = service_of(folder.family).model, folder.config
    read = SchedulerConfig.from_diffusers(config)
    kind = "StableDiffusionXLPipeline" if folder.family == "sdxl" else "StableDiffusionPipeline"
    return UNetService(replace(model, schedule=read.schedule, sampler=read_scheduler(config, kind)))


def draw_theirs(folder: Folder) -> Drawn:
    """The folder's picture by diffusers: its own noise, sized by its scheduler."""
    kind = StableDiffusionXLPipeline if folder.family == "sdxl" else StableDiffusionPipeline
    pipeline = pipeline_of(kind, folder.family)
    pipeline.scheduler = folder.scheduler
    return theirs(
        pipeline,
        "red apple",
        height=SIDE,
        width=SIDE,
        num_inference_steps=folder.steps,
        guidance_scale=folder.guidance,
        generator=torch.Generator().manual_seed(SEED),
    )


def draw_ours(folder: Folder, **settings: Any) -> tuple[GenerationResult, Drawn]:
    """The same by undertow, from its seed alone. settings: further ones of the request."""
    usual = {"steps": folder.steps, "seed": SEED, "size": (SIDE, SIDE), "guidance_scale": folder.guidance}
    result = service_for(folder).generate("red apple", **usual, **settings)
    return result, ours(result)
