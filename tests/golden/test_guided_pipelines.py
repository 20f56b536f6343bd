"""End to end: guidance through the whole engine, against the pipelines of diffusers, from the same noise."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)

from tests.few import few
from tests.golden.drawn import LEVELS, assert_same, ours, pipeline_of, theirs
from tests.services import service_of
from undertow import GenerationResult

# The pipeline of self-attention guidance is kept by diffusers without being developed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]

STEPS, SIDE, FACTOR = 6, 32, 2

CASES = {
    # name: (family, undertow's words, diffusers' pipeline, its arguments)
    "pag": ("sd1", "cfg+pag(scale=3)", StableDiffusionPAGPipeline, {"pag_scale": 3.0}),
    "pag of v": ("sd2", "cfg+pag(scale=2)", StableDiffusionPAGPipeline, {"pag_scale": 2.0}),
    "pag in sdxl": ("sdxl", "cfg+pag(scale=3)", StableDiffusionXLPAGPipeline, {"pag_scale": 3.0}),
    "sag": ("sd1", "cfg+sag(scale=0.75)", StableDiffusionSAGPipeline, {"sag_scale": 0.75}),
    "rescale": ("sd1", "cfg+rescale(amount=1)", StableDiffusionPipeline, {"guidance_rescale": 1.0}),
    "rescale of v": ("sd2", "cfg+rescale(amount=0.7)", StableDiffusionPipeline, {"guidance_rescale": 0.7}),
    "rescale in sdxl": ("sdxl", "cfg+rescale(amount=0.7)", StableDiffusionXLPipeline, {"guidance_rescale": 0.7}),
    "free_u": ("sd1", "cfg+free_u(b1=1.3,b2=1.4,s1=0.9,s2=0.2,keyed=index)", StableDiffusionPipeline, {}),
}


@pytest.mark.parametrize("name", few(CASES, 4))
def test_pictures_equal_those_of_the_pipeline(name: str):
    family, words, kind, options = CASES[name]
    reference = pipeline_of(kind, family, **({"pag_applied_layers": "mid"} if "pag_scale" in options else {}))
    if name == "free_u":
        reference.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    noise = torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR, generator=torch.Generator().manual_seed(5))
    size = {"height": SIDE, "width": SIDE}
    expected = theirs(
        reference, "red apple", **size, num_inference_steps=STEPS, guidance_scale=5.0, latents=noise, **options
    )
    found, plain = ours(draw(family, words)), ours(draw(family, "cfg"))
    assert_same(found, expected)
    assert np.abs(found.pixels - plain.pixels).max() > 3 * LEVELS, "the method must change the picture"


@cache
def draw(family: str, method: str) -> GenerationResult:
    return service_of(family).generate(
        "red apple",
        steps=STEPS,
        guidance_scale=5.0,
        guidance_method=method,
        seed=5,
        size=(SIDE, SIDE),
        sampler="ddim",
        schedule="ddim",
    )
