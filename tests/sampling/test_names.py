"""Names of other tools, with a grid in them or without, to ours and back; and ComfyUI's algorithms of their own."""

import pytest
import torch

from tests.sampling.problem import smooth
from undertow.diffusion import GRIDS, NoiseSchedule, sigma_grid
from undertow.errors import ConfigError, InvalidInput
from undertow.sampling import ALIASES, SAMPLERS, NoiseSource
from undertow.sampling.names import read_names, sampler_in, schedule_in
from undertow.schedulers.levels import COMFYUI_ZERO_SNR_ALPHA_CUMPROD

STABLE_DIFFUSION = NoiseSchedule.scaled_linear()


@pytest.mark.parametrize(
    ("written", "schedule", "expected"),
    [
        # A1111 before 1.9, and infotexts of that time.
        ("DPM++ 2M Karras", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Heun Exponential", None, ("dpmpp_2m_sde_heun", "exponential")),
        ("DPM++ 2S a Karras", None, ("dpmpp_2s_a", "karras")),
        ("LMS Karras", None, ("lms", "karras")),
        ("DPM2 a karras", None, ("dpm2_a", "karras")),
        # Names that end in no grid, or in a word of their own.
        ("Euler a", None, ("euler_a", None)),
        ("DPM++ 2M SDE", None, ("dpmpp_2m_sde", None)),
        ("DPM fast", None, ("dpm_fast", None)),
        # A grid beside the name comes first.
        ("DPM++ 2M Karras", "Exponential", ("dpmpp_2m", "Exponential")),
        # What A1111 1.9 takes for the sampler.
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 3M SDE", "Automatic", ("dpmpp_3m_sde", "exponential")),
        ("Euler", "Automatic", ("euler", "normal")),
        # As some front ends join them.
        ("dpmpp_2m_karras", None, ("dpmpp_2m", "karras")),
        ("euler_ancestral_sgm_uniform", None, ("euler_a", "sgm_uniform")),
        ("euler", "simple", ("euler", "simple")),
    ],
)
def test_a_name_may_end_in_its_grid(written: str, schedule: str | None, expected: tuple[str, str | None]):
    assert read_names(written, schedule) == expected
    if expected[1] is not None:
        assert len(sigma_grid(expected[1], STABLE_DIFFUSION, 5)) == 6


@pytest.mark.parametrize("written", ["DPM++ 2M Karas", "Karras", "DPM++ 9M Karras"])
def test_half_a_name_is_refused_as_a_whole(written: str):
    with pytest.raises(InvalidInput, match=rf"sampler is '{written.replace('+', '.')}'"):
        read_names(written)


def test_a_tool_may_be_named_whose_names_they_are():
    assert read_names("lms", "beta", tool="ComfyUI") == ("lms_comfyui", "beta_comfyui")
    assert read_names("lms", "beta") == ("lms", "beta")
    assert read_names("dpm_2", "ddim_uniform", tool="ComfyUI") == ("dpm2", "ddim_comfyui")


@pytest.mark.parametrize("tool", ALIASES)
def test_every_name_of_a_tool_comes_back(tool: str):
    """Of several names for one of ours, the first."""
    for ours in set(ALIASES[tool].values()):
        theirs = sampler_in(tool, ours)
        assert theirs is not None
        assert read_names(theirs, tool=tool)[0] == ours
    assert sampler_in("A1111", "lms_comfyui") is None
    for grid in GRIDS:
        theirs = schedule_in(tool, grid)
        if theirs is not None and tool != "diffusers":
            assert read_names("euler", theirs, tool=tool)[1] == grid
    assert [schedule_in(tool, "karras") for tool in ("A1111", "ComfyUI", "diffusers")] == [
        "Karras",
        "karras",
        "use_karras_sigmas",
    ]


@pytest.mark.parametrize("name", ["lms", "ipndm", "ipndm_v"])
def test_comfyuis_last_step_goes_to_the_estimate(name: str):
    """Since 2025; until there they are the same, as k-diffusion's."""
    sigmas = sigma_grid("karras", STABLE_DIFFUSION, 6)
    points: dict[str, list[torch.Tensor]] = {}
    for which in (name, f"{name}_comfyui"):
        sampler = SAMPLERS[which].function(NoiseSource([1]).draw((5,)).double() * sigmas[0], sigmas)
        call, points[which] = next(sampler), []
        for _ in sigmas[1:-1]:
            points[which].append(call.x)
            call = sampler.send(smooth(call.x, call.sigma))
        last = smooth(call.x, call.sigma)
        with pytest.raises(StopIteration) as finished:
            sampler.send(last)
        points[which].append(finished.value.value)
    ours, theirs = points[name], points[f"{name}_comfyui"]
    assert all(torch.equal(one, other) for one, other in zip(ours[:-1], theirs[:-1], strict=True))
    assert torch.equal(theirs[-1], last)
    assert not torch.allclose(ours[-1], theirs[-1], atol=1e-3)


def test_comfyuis_first_level_of_zero_terminal_snr():
    """comfy/model_sampling.py, `rescale_zero_terminal_snr_sigmas`: sqrt((1 - a) / a) of its a."""
    ours = STABLE_DIFFUSION.rescale_zero_terminal_snr()
    theirs = NoiseSchedule(betas=ours.betas, zero_terminal_snr=True, last_alpha_cumprod=COMFYUI_ZERO_SNR_ALPHA_CUMPROD)
    assert ours.sigma_max == pytest.approx(4096, rel=1e-6)
    assert theirs.sigma_max == pytest.approx(4518.76, rel=1e-6)
    assert torch.equal(ours.sigmas[:-1], theirs.sigmas[:-1])
    assert sigma_grid("karras", theirs, 6)[3] > 1.05 * sigma_grid("karras", ours, 6)[3]
    with pytest.raises(ConfigError, match="last_alpha_cumprod"):
        NoiseSchedule(betas=ours.betas, last_alpha_cumprod=0.0)
