"""Which sampler, levels and first noise a request gets."""

from dataclasses import replace

import pytest
import torch

from tests.services import service_of
from undertow import UNetService
from undertow.diffusion.grids import sigma_grid
from undertow.engine.chosen_sampler import choose_sampler
from undertow.engine.request import GenerationRequest

SETTINGS = {"steps": 3, "size": (32, 32), "seed": 4}


def test_a_name_with_its_grid_draws_along_it():
    service = service_of("sd1")
    joined = service.generate("a", sampler="DPM++ 2M Karras", **SETTINGS)
    apart = service.generate("a", sampler="dpmpp_2m", schedule="karras", **SETTINGS)
    other = service.generate("a", sampler="DPM++ 2M Karras", schedule="Simple", **SETTINGS)
    assert torch.equal(joined.latents, apart.latents)
    assert (joined.report.sampler, joined.report.schedule) == ("dpmpp_2m", "karras")
    assert list(other.report.sigmas) == sigma_grid("simple", service.model.schedule, 3)


def test_without_a_sampler_of_its_own_a_model_draws_with_dpmpp_2m():
    service = service_of("sd1")
    assert service.model.sampler is None, "DDPMScheduler is what training scripts write"
    found = service.generate("a", **SETTINGS)
    assert torch.equal(found.latents, service.generate("a", sampler="dpmpp_2m", **SETTINGS).latents)
    assert not any("sampler" in line for line in found.report.decisions)


@pytest.mark.parametrize(
    ("sigmas", "size"), [((14.6146, 1.0, 0.0), "variance"), ((14.0, 1.0, 0.0), "sigma"), ((2.0, 0.5, 0.0), "sigma")]
)
def test_comfyui_starts_below_the_highest_level_at_sigma_noise(sigmas: tuple[float, ...], size: str):
    """comfy/samplers.py, `max_denoise`, and comfy/model_sampling.py, `noise_scaling`."""
    schedule = service_of("sd1").model.schedule
    chosen = choose_sampler(GenerationRequest(prompt="", sigmas=sigmas, noise_convention="comfy"), schedule)
    assert chosen.noise_at(chosen.grid(2)[0]) == size
    assert choose_sampler(GenerationRequest(prompt="", sigmas=sigmas), schedule).noise_at(sigmas[0]) == "variance"


def test_the_size_of_the_first_noise_reaches_the_network():
    service, sigmas = service_of("sd1"), (2.0, 0.0)
    given = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"sampler": "euler", "sigmas": sigmas, "size": (32, 32)}
    comfy = service.generate("a", latents=given, noise_convention="comfy", **settings)
    scaled = service.generate("a", latents=given * 2 / 5**0.5, **settings)
    torch.testing.assert_close(comfy.latents, scaled.latents, rtol=1e-4, atol=1e-4)


def test_comfyuis_first_level_is_drawn_from():
    model = service_of("sd2").model
    service = UNetService(replace(model, schedule=model.schedule.rescale_zero_terminal_snr()))
    found = service.generate("a", sampler="euler", noise_convention="comfy", **SETTINGS)
    assert found.report.sigmas[0] == pytest.approx(4518.76, rel=1e-6)
    assert found.latents.isfinite().all()
