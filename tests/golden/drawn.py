"""Pictures with the latents under them, drawn by diffusers' pipelines and by undertow, and compared."""

import inspect
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from tests.golden.conftest import largest_difference
from tests.golden.pipelines import PIPELINES, SCHEDULE
from tests.services import pipeline_folder
from undertow import GenerationResult

LEVELS = 2
"""Of 255, between pictures; observed 0 or 1, where rounding to 8 bits falls the other way."""

LATENTS = 1e-4
"""Of the largest value (at least 1), in float32: the same operations in another order, over steps in which their
roundings grow; observed 3e-6 at most. Eight bits of a picture would hide a hundred times more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One picture, and the latents that it was decoded from."""

    latents: Tensor
    image: Image.Image

    @property
    def pixels(self) -> np.ndarray:
        return np.asarray(self.image, dtype=int)


def pipeline_of(kind: type[DiffusionPipeline], family: str, **parts: Any) -> Any:
    """One of diffusers' pipelines over a family's networks, with DDIM's steps. The networks are loaded once; the U-Net,
    which some pipelines change, is a copy. parts: others, or further arguments."""
    known = inspect.signature(kind.__init__).parameters
    found = {name: part for name, part in _components(family).items() if name in known}
    quiet = {name: False for name in ("requires_safety_checker", "add_watermarker") if name in known}
    pipeline: Any = kind(**{**found, "unet": deepcopy(found["unet"]), **quiet, **parts})
    pipeline.set_progress_bar_config(disable=True)
    # Put in afterwards: the constructor warns of settings that are not Stable Diffusion's own.
    pipeline.scheduler = DDIMScheduler(
        **SCHEDULE,
        prediction_type=prediction_of(family),
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return pipeline


def prediction_of(family: str) -> str:
    """What a family's U-Net predicts, in diffusers' words."""
    return "v_prediction" if family == "sd2" else "epsilon"


def theirs(pipeline: Any, prompt: str, **settings: Any) -> Drawn:
    """What a pipeline of diffusers draws, in one run: its latents, and their picture by its own decoder."""
    latents = pipeline(prompt, output_type="latent", **settings).images
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return Drawn(latents=latents, image=pipeline.image_processor.postprocess(decoded, output_type="pil")[0])


def ours(result: GenerationResult) -> Drawn:
    """What undertow drew."""
    return Drawn(latents=result.latents, image=result.images[0])


def assert_same(found: Drawn, expected: Drawn) -> None:
    """Equal latents and equal pictures, of which neither is too flat nor too loud to tell."""
    print(
        "DIFF",
        largest_difference(found.latents, expected.latents),
        found.pixels.std(),
        np.isin(found.pixels, (0, 255)).mean(),
    )
    assert largest_difference(found.latents, expected.latents) <= LATENTS
    assert np.abs(found.pixels - expected.pixels).max() <= LEVELS
    assert found.pixels.std() > 10, "a flat picture compares nothing"
    assert np.isin(found.pixels, (0, 255)).mean() < 0.2, "a saturated picture hides differences"


@cache
def _components(family: str) -> dict[str, Any]:
    return PIPELINES.get(family, StableDiffusionPipeline).from_pretrained(pipeline_folder(family)).components
