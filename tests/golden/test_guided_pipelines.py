"""End to end: guidance through the whole engine, against the pipelines of diffusers, from the same noise."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)

import undertow
from tests.golden.pipelines import SCHEDULE, save_pipeline

# The pipeline of self-attention guidance is kept by diffusers without being developed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]

STEPS, SIDE, FACTOR = 6, 32, 2
LEVELS = 2
"""Of 255, as in test_pipelines.py; observed 0 or 1."""

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_pipeline(family, tmp_path_factory.mktemp(family) / "p") for family in ("sd1", "sd2", "sdxl")}


@pytest.mark.parametrize("name", CASES)
def test_pictures_equal_those_of_the_pipeline(folders, name: str):
    family, words, kind, options = CASES[name]
    parts = kind.from_pretrained(folders[family]).components
    reference = kind(**parts, **({"pag_applied_layers": "mid"} if "pag_scale" in options else {}))
    reference.set_progress_bar_config(disable=True)
    reference.scheduler = DDIMScheduler(
        **SCHEDULE,
        prediction_type="v_prediction" if family == "sd2" else "epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    if name == "free_u":
        reference.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    noise = torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR, generator=torch.Generator().manual_seed(5))
    theirs = reference(
        "red apple", height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=5.0, latents=noise, **options
    )
    service = undertow.load(folders[family], dtype=torch.float32)

    def draw(method: str) -> np.ndarray:
        image = service.generate(
            "red apple",
            steps=STEPS,
            guidance_scale=5.0,
            guidance_method=method,
            seed=5,
            size=(SIDE, SIDE),
            sampler="ddim",
            schedule="ddim",
        ).images[0]
        return np.asarray(image, dtype=int)

    ours = draw(words)
    assert np.abs(np.asarray(theirs.images[0], dtype=int) - ours).max() <= LEVELS
    assert np.abs(ours - draw("cfg")).max() > 3 * LEVELS, "the method must change the picture"
    assert ours.std() > 10, "a flat picture compares nothing"
    assert np.isin(ours, (0, 255)).mean() < 0.2, "a saturated picture hides differences"
