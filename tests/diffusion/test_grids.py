import math
from itertools import pairwise

import pytest
import torch

from undertow.diffusion import GRID_ALIASES, GRIDS, EDMSchedule, FlowSchedule, NoiseSchedule, require_grid, sigma_grid
from undertow.diffusion.curved_grids import polyexponential
from undertow.diffusion.grids import karras
from undertow.errors import InvalidInput

STABLE_DIFFUSION = NoiseSchedule.scaled_linear()
SCHEDULES = [
    STABLE_DIFFUSION,
    STABLE_DIFFUSION.rescale_zero_terminal_snr(),
    FlowSchedule(),
    FlowSchedule(shift=3.0),
    EDMSchedule(),
]
CLOSE = {"rel": 1e-9}


# Made for sigma of diffusion models, and refused on the flow path.
TABLES = ("ays_sd15", "ays_sdxl", "gits_sd15", "gits_sdxl")
# Named for the tool whose count of steps or end they have.
AS_ELSEWHERE = ("ddim_comfyui", "beta_comfyui", "kl_optimal_forge")
OURS = [name for name in GRIDS if name not in AS_ELSEWHERE]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd", "zero snr", "flow", "flow shifted", "edm"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 999, 1000])
@pytest.mark.parametrize("name", OURS)
def test_every_grid_has_n_steps_down_to_zero_within_the_trained_levels(name: str, steps: int, schedule):
    if name in TABLES and isinstance(schedule, FlowSchedule):
        with pytest.raises(InvalidInput, match="flow path"):
            sigma_grid(name, schedule, steps)
        return
    sigmas = sigma_grid(name, schedule, steps)
    assert len(sigmas) == steps + 1
    assert all(sigma > target for sigma, target in pairwise(sigmas))
    assert sigmas[-1] == 0
    assert sigmas[0] <= schedule.sigma_max * (1 + 1e-9)
    assert sigmas[-2] >= schedule.sigma_min * (1 - 1e-9)
    require_grid(sigmas)


@pytest.mark.parametrize(
    "name", ["normal", "karras", "exponential", "polyexponential", "vp", "beta_sigma", "kl_optimal", "laplace"]
)
def test_grids_over_the_whole_range_reach_both_ends(name: str):
    sigmas = sigma_grid(name, STABLE_DIFFUSION, 10)
    assert sigmas[0] == pytest.approx(STABLE_DIFFUSION.sigma_max, **CLOSE)
    assert sigmas[-2] == pytest.approx(STABLE_DIFFUSION.sigma_min, **CLOSE)


@pytest.mark.parametrize("name", ["polyexponential", "vp", "beta_sigma", "kl_optimal", "laplace"])
def test_curves_there_and_back_do_not_leave_the_trained_levels_by_rounding(name: str):
    schedules = [EDMSchedule(sigma_min=0.002 * 1.1**power, sigma_max=80 * 1.1**power) for power in range(20)]
    for schedule in schedules:
        sigmas = sigma_grid(name, schedule, 5)
        assert schedule.sigma_min <= sigmas[-2] < sigmas[0] <= schedule.sigma_max


def timesteps(name: str, steps: int) -> list[float]:
    sigmas = torch.tensor(sigma_grid(name, STABLE_DIFFUSION, steps)[:-1], dtype=torch.float64)
    return STABLE_DIFFUSION.sigma_to_timestep(sigmas).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal", [999, 666, 333, 0]),
        ("sgm_uniform", [999, 749.25, 499.5, 249.75]),
        ("simple", [999, 749, 499, 249]),
        ("ddim", [751, 501, 251, 1]),
    ],
)
def test_grids_spaced_in_timesteps(name: str, expected: list[float]):
    assert timesteps(name, 4) == pytest.approx(expected, abs=1e-8)


def test_grids_when_steps_do_not_divide_the_trained_levels():
    """ddim would be 31 steps in ComfyUI; n means n here."""
    assert timesteps("simple", 7) == pytest.approx([999 - i * 1000 // 7 for i in range(7)], abs=1e-8)
    assert timesteps("ddim", 30) == pytest.approx([1 + 33 * i for i in reversed(range(30))], abs=1e-8)


def test_karras_is_even_in_the_root_of_sigma():
    for rho in (7.0, 3.0):
        roots = torch.tensor(karras(STABLE_DIFFUSION, 9, rho=rho)[:-1]).double() ** (1 / rho)
        assert roots.diff().std() < 1e-7
    default = sigma_grid("karras", STABLE_DIFFUSION, 9)
    assert default == pytest.approx(karras(STABLE_DIFFUSION, 9, rho=7.0))


def test_exponential_is_even_in_log_sigma():
    sigmas = sigma_grid("exponential", STABLE_DIFFUSION, 9)[:-1]
    steps = [math.log(sigma / target) for sigma, target in pairwise(sigmas)]
    assert steps == pytest.approx([steps[0]] * 8, **CLOSE)


def test_flow_grids_apply_the_shift_once():
    assert sigma_grid("sgm_uniform", FlowSchedule(), 2)[:2] == pytest.approx([1.0, 0.5005])
    shifted = sigma_grid("sgm_uniform", FlowSchedule(shift=3.0), 2)
    time = (1 + FlowSchedule(shift=3.0).sigma_min) / 2
    assert shifted[1] == pytest.approx(3 * time / (1 + 2 * time))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'karras'"):
        sigma_grid("karas", STABLE_DIFFUSION, 4)
    with pytest.raises(InvalidInput) as refused:
        sigma_grid("GITS_SD", STABLE_DIFFUSION, 4)
    question, _, listed = refused.value.remedy.partition("? ")
    assert (refused.value.expected, listed) == ("a known schedule", "`undertow samplers --schedules` lists them")
    offered = question.removeprefix("did you mean ").split(" or ")
    assert set(offered) == {"'gits_sd15'", "'gits_sdxl'", "'ays_sdxl'"}, "three names at most"
    with pytest.raises(InvalidInput) as refused:
        sigma_grid("zzz", STABLE_DIFFUSION, 4)
    assert refused.value.remedy == "`undertow samplers --schedules` lists them"


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(name: str, steps: int):
    with pytest.raises(InvalidInput, match=f"steps is {steps}, expected at least 1"):
        sigma_grid(name, STABLE_DIFFUSION, steps)


@pytest.mark.parametrize("name", ["simple", "ddim", "ddim_comfyui", "turbo"])
def test_more_steps_than_trained_levels_are_refused_where_levels_would_repeat(name: str):
    with pytest.raises(InvalidInput, match="at most 1000"):
        sigma_grid(name, STABLE_DIFFUSION, 1001)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_rho_is_refused(rho: float):
    for grid in (karras, polyexponential):
        with pytest.raises(InvalidInput, match="rho"):
            grid(STABLE_DIFFUSION, 4, rho=rho)


@pytest.mark.parametrize(
    "sigmas", [[], [1.0], [1.0, 1.0], [1.0, 2.0], [2.0, 1.0, -0.1], [float("inf"), 1.0], [2.0, float("nan"), 0.0]]
)
def test_grids_that_cannot_be_walked_are_refused(sigmas: list[float]):
    with pytest.raises(InvalidInput, match="strictly decreasing"):
        require_grid(sigmas)


# What the formulas of other tools, written out here with their own constants, give for 5 steps.


def test_beta_grids_are_the_three_of_the_tools():
    from scipy import stats

    low, high = STABLE_DIFFUSION.sigma_min, STABLE_DIFFUSION.sigma_max
    places = [round(stats.beta.ppf(1 - index / 5, 0.6, 0.6) * 999) for index in range(5)]
    assert sigma_grid("beta_comfyui", STABLE_DIFFUSION, 5) == [*STABLE_DIFFUSION.sigmas[places].tolist(), 0.0]
    ours = timesteps("beta", 5)
    assert ours == pytest.approx(places, abs=0.5)
    quantiles = [stats.beta.ppf(1 - index / 4, 0.6, 0.6) for index in range(5)]
    expected = [*(low + quantile * (high - low) for quantile in quantiles), 0.0]
    assert sigma_grid("beta_sigma", STABLE_DIFFUSION, 5) == pytest.approx(expected)


def test_the_rounded_beta_grid_drops_repeated_levels():
    sigmas = sigma_grid("beta_comfyui", STABLE_DIFFUSION, 500)
    require_grid(sigmas)
    assert 300 < len(sigmas) - 1 < 500


def test_kl_optimal_ends_at_zero_or_at_the_smallest_level():
    low, high = STABLE_DIFFUSION.sigma_min, STABLE_DIFFUSION.sigma_max
    places = [math.tan(i / 4 * math.atan(low) + (1 - i / 4) * math.atan(high)) for i in range(5)]
    assert sigma_grid("kl_optimal", STABLE_DIFFUSION, 5) == pytest.approx([*places, 0.0])
    assert sigma_grid("kl_optimal_forge", STABLE_DIFFUSION, 4) == pytest.approx(places)


def test_the_vp_grid_is_k_diffusions_between_its_own_ends():
    """`get_sigmas_vp`: beta from 0.1 to 20, the times from 1 to 1e-3; its ends are given here as those of a model."""
    times = [1 + index / 6 * (1e-3 - 1) for index in range(7)]
    expected = [math.sqrt(math.expm1(19.9 * time**2 / 2 + 0.1 * time)) for time in times]
    schedule = EDMSchedule(sigma_min=expected[-1], sigma_max=expected[0])
    assert sigma_grid("vp", schedule, 7) == pytest.approx([*expected, 0.0], **CLOSE)


def test_the_laplace_grid_has_quantiles_of_that_distribution():
    """arXiv:2407.03297: log sigma around 0, of scale 1/2, between the ends of the model."""
    from scipy import stats

    low, high = (stats.laplace.cdf(math.log(end), 0, 0.5) for end in (0.05, 8.0))
    quantiles = [high + index / 6 * (low - high) for index in range(7)]
    expected = [math.exp(stats.laplace.ppf(quantile, 0, 0.5)) for quantile in quantiles]
    schedule = EDMSchedule(sigma_min=0.05, sigma_max=8.0)
    assert sigma_grid("laplace", schedule, 7) == pytest.approx([*expected, 0.0], **CLOSE)


def test_the_polyexponential_grid_is_even_in_a_power_of_log_sigma():
    """k-diffusion `get_sigmas_polyexponential`; at rho = 1, the default, it is the exponential grid."""
    low, high = math.log(STABLE_DIFFUSION.sigma_min), math.log(STABLE_DIFFUSION.sigma_max)
    expected = [math.exp(low + (1 - index / 6) ** 2.5 * (high - low)) for index in range(7)]
    assert polyexponential(STABLE_DIFFUSION, 7, rho=2.5) == pytest.approx([*expected, 0.0], **CLOSE)
    whole = sigma_grid("exponential", STABLE_DIFFUSION, 7)
    assert sigma_grid("polyexponential", STABLE_DIFFUSION, 7) == pytest.approx(whole, **CLOSE)


TABLES_PUBLISHED = {
    "ays_sd15": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
    "ays_sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
    "gits_sd15": [14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029],
    "gits_sdxl": [14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029],
}


@pytest.mark.parametrize("name", TABLES_PUBLISHED)
def test_tables_are_given_back_at_their_own_length_within_the_trained_levels(name: str):
    table = TABLES_PUBLISHED[name]
    wide = EDMSchedule(sigma_min=0.01, sigma_max=20.0)
    assert sigma_grid(name, wide, 11) == pytest.approx([*table, 0.0], **CLOSE)
    ends = [STABLE_DIFFUSION.sigma_max, *table[1:-1], STABLE_DIFFUSION.sigma_min, 0.0]
    assert sigma_grid(name, STABLE_DIFFUSION, 11) == pytest.approx(ends, **CLOSE)


def test_tables_are_interpolated_in_log_sigma():
    halves = sigma_grid("ays_sdxl", STABLE_DIFFUSION, 21)
    assert halves[1] == pytest.approx(math.sqrt(14.615 * 6.315))


def test_the_linear_quadratic_grid_has_no_jump_and_no_kink():
    steps = 40
    gone = [1 - sigma / STABLE_DIFFUSION.sigma_max for sigma in sigma_grid("linear_quadratic", STABLE_DIFFUSION, steps)]
    differences = [later - earlier for earlier, later in pairwise(gone)]
    assert gone[20] == pytest.approx(0.025)
    assert differences[:20] == pytest.approx([0.025 / 20] * 20)
    bends = [later - earlier for earlier, later in pairwise(differences[20:])]
    assert bends == pytest.approx([bends[0]] * len(bends))
    assert gone[-1] == 1


def test_ddim_of_comfyui_may_have_more_steps():
    assert len(sigma_grid("ddim_comfyui", STABLE_DIFFUSION, 30)) - 1 == 31
    assert sigma_grid("ddim_comfyui", STABLE_DIFFUSION, 20) == sigma_grid("ddim", STABLE_DIFFUSION, 20)


def test_discarding_the_penultimate_level_keeps_the_count():
    sigmas = sigma_grid("karras", STABLE_DIFFUSION, 10, discard_penultimate=True)
    whole = sigma_grid("karras", STABLE_DIFFUSION, 11)
    assert sigmas == [*whole[:10], 0.0]


def test_names_of_other_tools_are_understood():
    for names in GRID_ALIASES.values():
        for alias, name in names.items():
            assert name in GRIDS
            if alias not in GRIDS:
                assert sigma_grid(alias, STABLE_DIFFUSION, 12) == sigma_grid(name, STABLE_DIFFUSION, 12)


def test_one_name_of_comfyui_is_ours_for_another_grid():
    """Its "beta" rounds to trained levels: the table says which grid of ours that is, and the name alone means ours."""
    theirs = {alias: name for alias, name in GRID_ALIASES["ComfyUI"].items() if alias in GRIDS and alias != name}
    assert theirs == {"beta": "beta_comfyui"}
    grids = [sigma_grid(name, STABLE_DIFFUSION, 5) for name in ("beta", "beta_comfyui")]
    assert grids[0] != grids[1]
