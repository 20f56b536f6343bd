"""The mathematics of consistency models, against a distribution whose consistency function is known.

Data that are normal with deviation s: the posterior mean is D(x, sigma) = s^2 / (s^2 + sigma^2) x, the trajectory of
dx/dsigma = (x - D) / sigma through x ends at f(x, sigma) = s / sqrt(s^2 + sigma^2) x (arXiv:2206.00364, appendix B.3,
for one point of data; the general case is the same integral).
"""

import math

import pytest
import torch
from diffusers import LCMScheduler

from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import ConfigError
from undertow.training.consistency import (
    DistilledLevels,
    Tightening,
    boundary_scalings,
    ddim_step,
    number_distance,
    row_distance,
    tuning_target,
)

S = 0.7


def posterior(x, sigma):
    return S**2 / (S**2 + sigma**2)[:, None] * x


def consistent(x, sigma):
    return S / (S**2 + sigma**2).sqrt()[:, None] * x


def test_scalings_are_those_of_diffusers_sampler():
    scheduler = LCMScheduler()
    timesteps = torch.tensor([0.0, 1.0, 19.0, 259.0, 999.0], dtype=torch.float64)
    for timestep, *ours in zip(timesteps.tolist(), *boundary_scalings(timesteps), strict=True):
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        assert [each.item() for each in ours] == pytest.approx([float(each) for each in theirs], rel=1e-12)


def test_levels_are_those_that_diffusers_sampler_picks_from():
    scheduler = LCMScheduler(original_inference_steps=25)
    scheduler.set_timesteps(25)
    levels = DistilledLevels(schedule=NoiseSchedule.scaled_linear(), count=25)
    assert levels.timesteps.flip(0).tolist() == scheduler.timesteps.tolist()
    upper, lower = levels.neighbors(torch.tensor([0.0, 0.03, 0.04, 0.999], dtype=torch.float64))
    assert upper.tolist() == [39, 39, 79, 999]
    assert lower.tolist() == [0, 0, 39, 959]
    with pytest.raises(ConfigError, match="original_steps"):
        DistilledLevels(schedule=NoiseSchedule.scaled_linear(), count=1)


def test_a_step_of_the_teacher_follows_the_trajectory_to_second_order():
    """The consistency function is constant along it, up to the error of Euler's method."""
    x, sigma = torch.randn(64, 8, dtype=torch.float64), torch.full((64,), 3.0, dtype=torch.float64)
    errors = []
    for distance in (0.04, 0.02, 0.01):
        below = sigma - distance
        moved = ddim_step(x, posterior(x, sigma), sigma, below)
        errors.append(float((consistent(moved, below) - consistent(x, sigma)).abs().max()))
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([4, 4], rel=0.1)
    assert errors[0] > 1e-6


def test_pairs_come_nearer_stage_by_stage():
    rule, sigma = Tightening(every=10, stages=3), torch.tensor([0.01, 1.0, 1000.0], dtype=torch.float64)
    assert [rule.stage(step) for step in (1, 10, 11, 20, 21, 500)] == [0, 0, 1, 1, 2, 2]
    # The formula written out, with sigmoid(-0.5) = 0.377541 and, far from the data, 0.
    n = [1 + 8 / (1 + math.exp(0.5 * each)) for each in sigma.tolist()]
    for step, halves in ((1, 2), (11, 4), (21, 8)):
        expected = [max(0.0, t * (1 - each / halves)) for t, each in zip(sigma.tolist(), n, strict=True)]
        assert rule.lower(sigma, step).tolist() == pytest.approx(expected)
    assert rule.lower(sigma, 1).tolist()[:2] == [0, 0], "it begins with the data itself"
    assert rule.lower(sigma, 21)[2].item() == pytest.approx(1000 * 7 / 8)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 1, "stages": 0}, {"every": 1, "q": 1.0}])
def test_a_schedule_that_never_tightens_is_refused(wrong):
    with pytest.raises(ConfigError):
        Tightening(**wrong)


def test_the_best_estimate_at_a_level_is_that_of_the_pair():
    """Of estimates a x at level t against a fixed one at r, the best has
    a(t) = a(r) E[x_t x_r] / E[x_t^2] = a(r) (s^2 + r t) / (s^2 + t^2): the residual is then independent of x_t, for any
    even distance. For near levels a step of this recursion is one along s / sqrt(s^2 + t^2)."""
    generator = torch.Generator().manual_seed(0)
    count = 400_000
    x0 = S * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    r, t = 1.2, 1.5
    lower, slope = S / math.sqrt(S**2 + r**2), S / math.sqrt(S**2 + r**2) * (S**2 + r * t) / (S**2 + t**2)
    for c in (0.0, 0.3):
        for factor, is_best in ((slope, True), (1.05 * slope, False)):
            a = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
            target = tuning_target(lower * (x0 + r * noise), x0, torch.zeros(count, dtype=torch.bool))
            distances = row_distance(a * (x0 + t * noise), target, c)
            (gradient,) = torch.autograd.grad(distances.mean(), a)
            assert (abs(gradient.item()) < 4 * 1.7 / math.sqrt(count)) is is_best  # 4 standard deviations
    assert slope == pytest.approx(S / math.sqrt(S**2 + t**2), rel=0.02)


def test_tuning_finds_the_consistency_function():
    """From the diffusion model, the posterior mean, of normal data, where one number for each level is a network."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.logspace(-1.5, 0.5, 24, dtype=torch.float64)
    slopes = (S**2 / (S**2 + levels**2)).requires_grad_(True)
    optimizer, rule = torch.optim.Adam([slopes], lr=0.01), Tightening(every=80, stages=6)

    def slope(sigma):
        at = torch.searchsorted(levels, sigma).clamp(1, len(levels) - 1)
        share = (sigma - levels[at - 1]) / (levels[at] - levels[at - 1])
        return torch.lerp(slopes[at - 1], slopes[at], share)[:, None]

    for step in range(1, 801):
        if step == 600:
            optimizer.param_groups[0]["lr"] = 0.001
        at = torch.randint(len(levels), (256,), generator=generator)
        sigma, x0 = levels[at], S * torch.randn(256, 1, generator=generator, dtype=torch.float64)
        noise, lower = torch.randn(256, 1, generator=generator, dtype=torch.float64), rule.lower(levels[at], step)
        is_data = lower < levels[0]
        with torch.no_grad():
            below = lower.clamp(min=levels[0].item())
            target = tuning_target(slope(below) * (x0 + below[:, None] * noise), x0, is_data)
        estimate = slopes[at][:, None] * (x0 + sigma[:, None] * noise)
        loss = (row_distance(estimate, target, 0.1) * (1 + sigma**-2).clamp(max=3)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = S / (S**2 + levels**2).sqrt()
    before = (S**2 / (S**2 + levels**2) - wanted).abs()
    after = (slopes.detach() - wanted).abs()
    assert float(before.max()) > 0.2, "the diffusion model is not consistent"
    assert float(after.max()) < 0.04


def test_distances_are_the_formulas_written_out():
    one, other = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    for row, a, b in zip(row_distance(one, other, 0.3).tolist(), one, other, strict=True):
        assert row == pytest.approx(math.sqrt(float(((a - b) ** 2).sum()) + 0.09) - 0.3)
    for row, a, b in zip(number_distance(one, other, 0.3).tolist(), one, other, strict=True):
        assert row == pytest.approx(float((((a - b) ** 2 + 0.09) ** 0.5 - 0.3).mean()))
    same = one.clone().requires_grad_(True)
    row_distance(same, one).sum().backward()
    assert bool(same.grad.isfinite().all()), "a root has no derivative at 0"
