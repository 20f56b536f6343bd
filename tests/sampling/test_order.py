"""How fast the error of each solver shrinks with its steps, in float64, where the exact solution is known."""

import math

import numpy as np
import pytest
import torch

from tests.sampling.problem import (
    SPREAD,
    best_denoiser,
    deviation,
    error,
    geometric,
    graded,
    karras,
    run,
    without_noise,
)
from undertow.diffusion import NoiseSchedule, RectifiedFlow, VariancePreserving, sigma_grid
from undertow.errors import InvalidInput
from undertow.sampling import SAMPLERS, NoiseSource, dpm_adaptive, dpmpp_2m, drive

PATH = VariancePreserving()
# Multistep methods of high order, whose low-order first steps would be all that is measured.
NEEDS_START = ("lms", "deis", "unipc", "unipc_bh2", "sa_solver", "sa_solver_pece")
# Their weights are for equal steps, so the grid must not be one on which steps happen to shrink evenly.
FIXED_WEIGHTS = ("pndm", "ipndm", "ipndm_v")
# ddpm and er_sde have no solver of the ordinary equation inside, restart goes back up, dpm_adaptive chooses its steps;
# ComfyUI's variants differ in the step to 0 alone.
MEASURED = [
    (name, path())
    for name, entry in SAMPLERS.items()
    for path in entry.paths
    # By a change of variables the equation stays the same one; that is shown by tests/sampling/test_flow.py.
    if (path is VariancePreserving or (path is RectifiedFlow and entry.native_flow))
    and entry.order is not None
    and name not in ("ddpm", "er_sde", "restart", "dpm_adaptive")
    and not name.endswith("_comfyui")
]


def grid_for(name: str):
    return graded if name in NEEDS_START else karras if name in FIXED_WEIGHTS else geometric


@pytest.mark.parametrize(
    ("name", "path"), MEASURED, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name: str, path):
    coarse, fine = (80, 320) if name == "dpm_fast" else (160, 320)  # its last steps depend on the count modulo 3
    grid = grid_for(name)
    measured = math.log(error(name, path, coarse, grid) / error(name, path, fine, grid), fine / coarse)
    assert measured == pytest.approx(SAMPLERS[name].order, abs=0.3)


@pytest.mark.parametrize(("name", "power"), [("ddpm", None), ("er_sde", 0.3)])
def test_the_mean_of_stochastic_solvers_converges(name: str, power: float | None):
    """Without its noise, x follows dx/dsigma = (x - denoised) dlog(phi)/dsigma, with each solver's scale of noise phi.

    The denoiser is linear, so that x is its mean, and known up to one integral.
    """

    def log_slope(sigma):
        if power is None:
            return 2 / sigma  # phi = sigma^2, DDPM's reverse process
        exponential = np.exp(sigma**power)
        return 1 / sigma + power * sigma ** (power - 1) * exponential / (exponential + 10)

    points, weights = np.polynomial.legendre.leggauss(200)
    logs = math.log(0.05 * 8) / 2 + math.log(8 / 0.05) / 2 * points
    sigma = np.exp(logs)
    exponent = np.sum(weights * log_slope(sigma) * sigma**2 / (SPREAD**2 + sigma**2) * sigma) * math.log(8 / 0.05) / 2
    x = torch.ones(1, 1, dtype=torch.float64)

    def miss(steps: int) -> float:
        options = {"s_noise": 0.0} if name == "er_sde" else {}
        end = run(name, x, geometric(8.0, 0.05, steps), best_denoiser(PATH), **options)
        return abs(end.item() - math.exp(-exponent))

    if name == "ddpm":  # its noise cannot be switched off: an average over many seeds is too rough for an order
        x = torch.ones(1, 50_000, dtype=torch.float64)
        end = run(name, x, geometric(8.0, 0.05, 200), best_denoiser(PATH))
        assert end.mean().item() == pytest.approx(math.exp(-exponent), abs=0.02)
    else:
        # The sums of 200 points that stand for integrals end the convergence at about 1e-4.
        assert miss(20) < 0.01
        assert miss(40) < miss(20) / 4


def test_restart_is_heun_below_twenty_steps():
    x = torch.ones(1, 2, dtype=torch.float64)
    sigmas = [*geometric(8.0, 0.05, 18), 0.0]
    assert torch.equal(run("restart", x, sigmas, best_denoiser(PATH)), run("heun", x, sigmas, best_denoiser(PATH)))


@pytest.mark.parametrize("grid", ["karras", "normal", "exponential", "simple"])
@pytest.mark.parametrize(("steps", "draws"), [(20, 1), (36, 2), (50, 2)])
def test_restart_draws_once_for_every_restart(grid: str, steps: int, draws: int):
    """Ends of its levels that rounding raised are no restarts: they would shift all noise after them."""
    drawn, expected = NoiseSource([1]), NoiseSource([1])
    sigmas = sigma_grid(grid, NoiseSchedule.scaled_linear(), steps)
    run("restart", torch.ones(1, 2, dtype=torch.float64), sigmas, best_denoiser(PATH), noise=drawn)
    for _ in range(draws):
        expected.draw((2,))
    assert torch.equal(drawn.draw((2,)), expected.draw((2,)))


def test_a_smaller_tolerance_makes_the_adaptive_solver_more_exact():
    x = torch.ones(1, 2, dtype=torch.float64)
    exact = deviation(PATH, 0.05) / deviation(PATH, 8.0)
    ends = [
        run("dpm_adaptive", x, [8.0, 0.05], best_denoiser(PATH), rtol=10.0**-digits, atol=10.0**-digits)
        for digits in (2, 4, 6)
    ]
    misses = [(end - exact).abs().max().item() for end in ends]
    assert misses[2] < 1e-6 < misses[1] / 10 < misses[0] / 100


def test_tolerances_that_nothing_meets_end_the_adaptive_solver(monkeypatch):
    """And not a worker that draws nothing else any more."""
    monkeypatch.setattr(dpm_adaptive, "MOST_TRIES", 5)
    x = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    with pytest.raises(InvalidInput, match=r"sampler_options is not done at a level of .*, expected to be done in 5 s"):
        run("dpm_adaptive", x, [8.0, 0.05], best_denoiser(PATH), rtol=1e-8, atol=1e-8)


def test_noise_that_no_step_survives_ends_the_adaptive_solver():
    x = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    with pytest.raises(InvalidInput, match=r"raise rtol and atol, or lower eta"):
        run("dpm_adaptive", x, [8.0, 0.05], best_denoiser(PATH), eta=1e9)


@pytest.mark.parametrize("end", [[0.05], [0.05, 0.0]], ids=["above 0", "to 0"])
def test_the_adaptive_solver_takes_nothing_but_the_ends_of_a_grid(end: list[float]):
    x = torch.ones(1, 2, dtype=torch.float64)
    whole = run("dpm_adaptive", x, [8.0, 3.0, 1.0, *end], best_denoiser(PATH))
    assert torch.equal(whole, run("dpm_adaptive", x, [8.0, *end], best_denoiser(PATH)))


def test_second_order_beats_first_order_at_equal_evaluations():
    assert error("dpmpp_2m", PATH, 40, geometric) < 0.2 * error("euler", PATH, 40, geometric)
    assert error("heun", PATH, 20, geometric) < 0.5 * error("euler", PATH, 40, geometric)


def test_unequal_steps_keep_the_second_order_of_the_multistep_solver():
    """Steps in log sigma alternate 1 : 3; on a smooth grid their ratio tends to 1, and a formula without it passes."""

    def error_on(pairs: int) -> float:
        logs = [4 * pair + part for pair in range(pairs) for part in (0, 1)] + [4 * pairs]
        sigmas = [8.0 * (0.05 / 8.0) ** (log / (4 * pairs)) for log in logs]
        x = torch.ones(1, 1, dtype=torch.float64)
        end = drive(dpmpp_2m(x, sigmas), best_denoiser(PATH))
        return abs(end.item() - deviation(PATH, 0.05) / deviation(PATH, 8.0))

    assert math.log2(error_on(100) / error_on(200)) == pytest.approx(2, abs=0.15)


def test_options_that_switch_noise_off_exist_for_every_stochastic_solver():
    lacking = [name for name, entry in SAMPLERS.items() if entry.stochastic and not without_noise(name)]
    assert lacking == ["ddpm"]
