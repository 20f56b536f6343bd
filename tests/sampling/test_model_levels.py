"""Samplers that know the model's own levels: windows of noise, timesteps, and steps on the flow path."""

import math

import pytest
import torch

from tests.sampling.problem import best_denoiser, run
from undertow.diffusion import EDMSchedule, FlowSchedule, NoiseSchedule, RectifiedFlow, sigma_grid
from undertow.diffusion.schedules import Schedule
from undertow.sampling import NoiseSource, drive, start_sampler
from undertow.sampling.euler import level_below, raised

STABLE_DIFFUSION = NoiseSchedule.scaled_linear()
SHAPE = (5,)


def draws(name: str, schedule: Schedule, sigmas: list[float], **options: float) -> int:
    """How often a sampler drew noise: its source goes on where a source that drew as often does."""
    source = NoiseSource([4])
    sampler = start_sampler(
        name, torch.ones(1, *SHAPE), sigmas, path=schedule.path, noise=source, schedule=schedule, **options
    )
    drive(sampler, lambda x, sigma: x / 2)
    following, reference = source.draw(SHAPE), NoiseSource([4])
    return next(count for count in range(len(sigmas) + 1) if torch.equal(reference.draw(SHAPE), following))


@pytest.mark.parametrize("name", ["sa_solver", "sa_solver_pece"])
@pytest.mark.parametrize(
    ("grid", "steps"), [("sgm_uniform", 5), ("sgm_uniform", 10), ("sgm_uniform", 20), ("normal", 6), ("normal", 16)]
)
def test_sa_solver_draws_noise_at_both_ends_of_its_window(name: str, grid: str, steps: int):
    """Levels spaced evenly in timesteps lie on both ends, which ComfyUI's `percent_to_sigma` gives: every step to a
    level from a fifth to four fifths of the timesteps draws."""
    sigmas = sigma_grid(grid, STABLE_DIFFUSION, steps)
    count = steps if grid == "sgm_uniform" else steps - 1
    inside = sum(0.2 - 1e-9 <= step / count <= 0.8 + 1e-9 for step in range(1, count))
    assert draws(name, STABLE_DIFFUSION, sigmas) == inside
    assert draws(name, STABLE_DIFFUSION, sigmas, s_tmax=5.0924) == inside - 1  # what the window was rounded to


def test_a_share_of_the_timesteps_is_a_level_of_the_models_own():
    """ComfyUI's `percent_to_sigma(0.2)` for its discrete models (5.092408 of Stable Diffusion), flows and EDM."""
    assert STABLE_DIFFUSION.sigma_at_share(0.8) == pytest.approx(5.092408, rel=1e-6)
    ddpm = NoiseSchedule.linear()
    low, high = ddpm.sigmas[799:801].log().tolist()  # 0.8 of 999 timesteps is 799.2
    assert ddpm.sigma_at_share(0.8) == pytest.approx(math.exp(0.8 * low + 0.2 * high), rel=1e-9)
    assert FlowSchedule(shift=3.0).sigma_at_share(0.8) == pytest.approx(3 * 0.8 / (1 + 2 * 0.8))
    assert EDMSchedule(sigma_min=0.002, sigma_max=80.0).sigma_at_share(0.8) == pytest.approx(0.002 * 40_000**0.8)


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear(), FlowSchedule(shift=3.0), EDMSchedule()], ids=["ddpm", "flow", "edm"]
)
def test_the_window_is_the_models_own(schedule: Schedule):
    inside = sigma_grid("normal", schedule, 11)
    ends = [schedule.sigma_at_share(share) for share in (0.2, 0.8)]
    expected = sum(ends[0] * (1 - 1e-6) <= sigma <= ends[1] * (1 + 1e-6) for sigma in inside[1:])
    assert 4 <= expected <= 8
    assert draws("sa_solver", schedule, inside) == expected


def test_tcd_steps_down_in_the_models_own_timesteps():
    """arXiv:2402.19159, algorithm 4: with gamma = 0.5 from timestep 800 through floor(0.5 * 400) to 400."""
    schedule = NoiseSchedule.linear()
    sigma, target, down = (schedule.sigmas[place].item() for place in (800, 400, 200))
    noise, x = NoiseSource([6]), torch.ones(1, *SHAPE, dtype=torch.float64)
    sampler = start_sampler("tcd", x, [sigma, target], path=schedule.path, noise=noise, schedule=schedule, gamma=0.5)
    end = drive(sampler, lambda x, sigma: x / 2)
    fresh = NoiseSource([6]).draw(SHAPE).double()
    expected = x / 2 + down * x / (2 * sigma) + math.sqrt(target**2 - down**2) * fresh
    torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "alike"), [("dpm2_a", "dpm2"), ("restart", "heun")])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_few_steps_on_the_flow_path_are_the_flows_own(name: str, alike: str, steps: int, shift: float):
    """Without noise they are the samplers they are made of, in the flow's sigma: from the ratio of noise to data near
    sigma = 1 they asked the network at hundreds of times the size of its training data, and ended there."""
    sigmas = sigma_grid("simple", FlowSchedule(shift=shift), steps)
    x = NoiseSource([1]).draw((64,)).double()

    def denoise(x, sigma: float):
        return torch.tanh((1 - sigma) * x / sigma**2)  # data at +1 and -1

    options = {"eta": 0.0} if name == "dpm2_a" else {}
    end = run(name, x, sigmas, denoise, path=RectifiedFlow(), **options)
    torch.testing.assert_close(end, run(alike, x, sigmas, denoise, path=RectifiedFlow()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["dpm2_a", "dpm_fast"])
@pytest.mark.parametrize("steps", [2, 3, 4, 6])
def test_few_steps_on_the_flow_path_stay_where_the_network_was_trained(name: str, steps: int):
    largest = 0.0

    def denoise(x, sigma: float):
        nonlocal largest
        largest = max(largest, (x.abs() / math.hypot(1 - sigma, sigma)).max().item())
        return torch.tanh((1 - sigma) * x / sigma**2)

    sigmas = sigma_grid("simple", FlowSchedule(shift=3.0), steps)
    run(name, NoiseSource([1]).draw((64,)).double(), sigmas, denoise, path=RectifiedFlow())
    assert largest < 12  # pure noise reaches 3; dpm2_a was at 139 to 839


def test_an_ancestral_step_on_the_flow_path_keeps_the_variance():
    """Noise over data of the target is that of the level below and of the fresh noise: variances of ratios add up."""
    path = RectifiedFlow()
    for sigma, target, eta in [(0.8, 0.5, 1.0), (0.8, 0.5, 0.4), (1.0, 0.6, 0.7)]:
        down = level_below(path, sigma, target, eta)
        assert 0 <= down < target
        data, noise = (raised(torch.tensor([part]), path, down, target, torch.zeros(1)) for part in (1 - down, down))
        fresh = raised(torch.zeros(1), path, down, target, torch.ones(1))
        assert data.item() == pytest.approx(1 - target, rel=1e-6)
        assert noise.item() ** 2 + fresh.item() ** 2 == pytest.approx(target**2, rel=1e-6)
    assert level_below(path, 1.0, 0.6, 1.0) == 0  # all of it is fresh from pure noise
    x = NoiseSource([3]).draw((20_000,)).double()
    end = run("dpm2_a", x, [1 - index / 60 for index in range(61)], best_denoiser(path), path=path)
    assert end.std().item() == pytest.approx(0.5, rel=0.05)
