"""Every x of every step beside k-diffusion's, in float64, with the same noise."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tests.golden.sampler_peers import K_DIFFUSION, OPTIONS, k_diffusion, worst_difference
from undertow.diffusion import NoiseSchedule, sigma_grid
from undertow.diffusion.grids import karras
from undertow.sampling import NoiseSource
from undertow.sampling.dpm_adaptive import _StepController

# Only the order of operations differs; LMS integrates its weights with a tolerance of 1e-4 there, and their step of
# sigma passes float32 in the fast and the adaptive solver.
EXACT = 1e-9
LOOSE = {"lms": 1e-3, "dpm_fast": 1e-4, "dpm_fast_comfyui": 1e-4, "dpm_adaptive": 2e-4, "dpm_adaptive_comfyui": 2e-4}

SCHEDULE = NoiseSchedule.scaled_linear()


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    module = k_diffusion()
    if module is None:
        pytest.skip("k-diffusion is not installed: make installs it")
    return module


@pytest.mark.parametrize("grid", ["karras", "normal"])
@pytest.mark.parametrize("name", K_DIFFUSION)
def test_every_step_is_k_diffusions(name: str, grid: str, reference: ModuleType):
    for steps in (5, 12):
        sigmas = sigma_grid(grid, SCHEDULE, steps)
        assert worst_difference(reference, name, K_DIFFUSION[name], sigmas) < LOOSE.get(name, EXACT)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, several in OPTIONS.items() for options in several], ids=str
)
def test_options_mean_what_they_mean_in_k_diffusion(name: str, options: dict[str, float], reference: ModuleType):
    usual = K_DIFFUSION[name]
    whole = {option: int(value) if option == "order" else value for option, value in options.items()}
    peer = replace(usual, options=usual.options | whole, ours=options)
    sigmas = sigma_grid("karras", SCHEDULE, 7)
    assert worst_difference(reference, name, peer, sigmas) < LOOSE.get(name, EXACT)


@pytest.mark.parametrize("order", [2, 3])
def test_the_step_controller_is_k_diffusions(order: int, reference: ModuleType):
    """Each of its three parts remembers another error; the run above hardly feels the last."""
    errors = [0.5, 1.3, 0.2, 3.0, 2.5, 0.05, 1.2, 0.9, 0.0, 0.7]
    p, i, d, safety = 0.4, 0.5, 0.3, 0.85
    theirs = reference.PIDStepSizeController(0.05, p, i, d, order, safety)
    powers = (p + i + d) / order, -(p + 2 * d) / order, d / order
    mine = _StepController(h=0.05, powers=powers, accept_safety=safety)
    for error in errors:
        assert mine.accepts(error) == theirs.propose_step(error)
        assert mine.h == pytest.approx(theirs.h, rel=EXACT)


def test_the_brownian_path_is_k_diffusions(reference: ModuleType):
    low, high = 0.03125, 14.5  # exact in float32 too
    x = torch.zeros(2, 3, 5)
    theirs = reference.BrownianTreeNoiseSampler(x, low, high, seed=[5, 6])
    mine = NoiseSource([5, 6]).brownian(x, [high, low, 0.0])
    for sigma, target in [(14.5, 9.0), (9.0, 2.5), (2.5, 0.03125)]:
        expected = theirs(torch.tensor(sigma), torch.tensor(target))
        # Their levels are float32: the path is compared a millionth of sigma away.
        torch.testing.assert_close(mine.between(sigma, target, x), expected, rtol=0, atol=5e-3)


def test_the_grids_are_k_diffusions(reference: ModuleType):
    ends = SCHEDULE.sigma_min, SCHEDULE.sigma_max
    for steps in (2, 7, 20):
        assert karras(SCHEDULE, steps) == pytest.approx(reference.get_sigmas_karras(steps, *ends).tolist(), rel=1e-5)
        for name in ("exponential", "polyexponential"):
            expected = getattr(reference, f"get_sigmas_{name}")(steps, *ends).tolist()
            assert sigma_grid(name, SCHEDULE, steps) == pytest.approx(expected, rel=1e-5)
