from dataclasses import replace

import pytest
import torch

from undertow.diffusion.parameterizations import EDMPrediction, Epsilon, Velocity, VPrediction, XPrediction
from undertow.diffusion.paths import VarianceExploding
from undertow.diffusion.schedules import EDMSchedule, FlowSchedule, NoiseSchedule
from undertow.errors import ConfigError
from undertow.training.objective import (
    ConstantWeighting,
    Ddpm,
    Example,
    Flow,
    MinSNRWeighting,
    Objective,
    TruncatedSNRWeighting,
    drop_labels,
)
from undertow.training.timesteps import LogitNormalTimesteps, UniformTimesteps, timesteps_at

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
AT_THE_LAST_LEVEL = {"rtol": 1e-3, "atol": 5e-4}
"""Cosine's last abar, 2e-9, is raised to 2^-24 for a finite sigma, which moves sqrt(abar) by 2e-4; and x is thousands
of times the data there, so that float32 keeps four digits of it."""

GAMMA = 5.0
LIMIT = 3.0

EDM = EDMPrediction(path=VarianceExploding(0.7))
PARAMETERIZATIONS = [Epsilon(), VPrediction(), XPrediction(), Velocity(), EDM, EDMPrediction(path=EDM.path, v=True)]


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 2, 4, 4, generator=generator) for _ in range(2))
    u = torch.tensor([0.0, 0.1, 0.35, 0.6, 0.9, 0.9995], dtype=torch.float64)
    return x0, noise, u


def column(values):
    return values.to(torch.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_is_sqrt_abar_x0_plus_sqrt_one_minus_abar_noise(rows, schedule):
    x0, noise, u = rows
    objective = Ddpm(prediction="epsilon", schedule=schedule).build()
    example = objective.example(x0, noise, u)
    steps = (u * 1000).long()
    abar = objective.schedule.alphas_cumprod[steps]
    torch.testing.assert_close(example.timesteps, steps.double())
    torch.testing.assert_close(
        example.inputs, column(abar.sqrt()) * x0 + column((1 - abar).sqrt()) * noise, **AT_THE_LAST_LEVEL
    )
    torch.testing.assert_close(example.target, noise)


def test_v_target_is_the_paper_s(rows):
    x0, noise, u = rows
    objective = Ddpm(prediction="v", schedule="cosine").build()
    abar = objective.schedule.alphas_cumprod[(u * 1000).long()]
    expected = column(abar.sqrt()) * noise - column((1 - abar).sqrt()) * x0
    torch.testing.assert_close(objective.example(x0, noise, u).target, expected, **AT_THE_LAST_LEVEL)


def test_flow_is_the_straight_line_from_data_to_noise(rows):
    x0, noise, u = rows
    example = Flow().build().example(x0, noise, u)
    t = column(u)
    torch.testing.assert_close(example.inputs, (1 - t) * x0 + t * noise, **FLOAT32)
    torch.testing.assert_close(example.target, noise - x0)
    torch.testing.assert_close(example.timesteps, 1000 * u)


def test_a_perfect_prediction_has_no_loss_and_any_other_counts_by_its_row_s_weight():
    target = torch.zeros(2, 1, 2, 2)
    example = Example(
        inputs=target,
        timesteps=torch.zeros(2, dtype=torch.float64),
        target=target,
        weights=torch.tensor([1.0, 3.0], dtype=torch.float64),
    )
    assert example.loss(target) == 0
    wrong = torch.tensor([2.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert example.loss(wrong).item() == pytest.approx((1 * 4 + 3 * 1) / 2)


def test_min_snr_weights_are_the_paper_s():
    sigma = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
    snr = 1 / sigma**2
    clipped = snr.clamp(max=GAMMA)
    weighting = MinSNRWeighting(gamma=GAMMA)
    torch.testing.assert_close(weighting.weights(Epsilon(), sigma), clipped / snr)
    torch.testing.assert_close(weighting.weights(VPrediction(), sigma), clipped / (snr + 1))
    torch.testing.assert_close(weighting.weights(XPrediction(), sigma), clipped)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize(
    ("weighting", "wanted"),
    [
        (MinSNRWeighting(gamma=GAMMA), lambda snr: snr.clamp(max=GAMMA)),
        (TruncatedSNRWeighting(limit=LIMIT), lambda snr: (snr + 1).clamp(max=LIMIT)),
    ],
    ids=["min_snr", "truncated_snr"],
)
def test_weightings_weigh_every_prediction_by_its_error_of_x0(parameterization, weighting, wanted):
    # One and the same wrong x0, said in each parameterization, has the same weighted loss.
    sigma = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    path = parameterization.path
    x0, noise, error = torch.randn(3, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = path.add_noise(x0, noise, sigma)
    right, wrong = (parameterization.prediction_from_denoised(value, x, sigma) for value in (x0, x0 + error))
    weights = weighting.weights(parameterization, sigma)
    snr = (path.alpha(sigma) / sigma) ** 2
    assert (wanted(snr) != snr).any()
    expected = wanted(snr) * error.square().sum((1, 2, 3))
    torch.testing.assert_close(weights * (wrong - right).square().sum((1, 2, 3)), expected)


@pytest.mark.parametrize("limit", [LIMIT, 7.0])
@pytest.mark.parametrize(("prediction", "name"), [(Epsilon(), "epsilon"), (VPrediction(), "v")])
def test_truncated_snr_weights_at_every_timestep_are_the_formula_in_alpha_bar(prediction, name, limit):
    """An error of epsilon is one of x0 times sqrt(abar / (1 - abar)), one of v times 1 / sqrt(1 - abar), and SNR + 1 is
    1 / (1 - abar): the embedded model is trained with the second, at limit 3."""
    abar = (1 - torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    of_x0 = torch.minimum(1 / (1 - abar), torch.tensor(limit, dtype=torch.float64))
    expected = of_x0 * (1 - abar) / (abar if name == "epsilon" else 1)
    objective = Objective(
        parameterization=prediction,
        schedule=NoiseSchedule.scaled_linear(beta_end=0.02),
        weighting=TruncatedSNRWeighting(limit=limit),
    )
    picture = torch.zeros(1000, 1, 1, 1)
    example = objective.example(picture, picture, (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    assert example.timesteps.tolist() == list(range(1000))
    torch.testing.assert_close(example.weights, expected, rtol=1e-6, atol=0)
    if name == "v":
        assert example.weights[-1].item() == 1, "where noise prevails v counts as it is"


def test_constant_weights_are_one():
    assert ConstantWeighting().weights(Epsilon(), torch.tensor([0.1, 9.0])).tolist() == [1, 1]


def test_uniform_timesteps_reach_every_level_of_ddpm_and_none_beyond():
    generator = torch.Generator().manual_seed(0)
    drawn = timesteps_at(NoiseSchedule.linear(steps=10), UniformTimesteps().draw(5000, generator))
    counts = torch.bincount(drawn.long(), minlength=10)
    assert drawn.frac().abs().max() == 0
    assert len(counts) == 10
    assert counts.min() > 400  # expected 500, standard deviation 21


def test_u_of_one_is_the_last_level():
    ones = torch.ones(1, dtype=torch.float64)
    assert timesteps_at(NoiseSchedule.linear(), ones).item() == 999
    assert timesteps_at(FlowSchedule(), ones).item() == 1000


def test_edm_visits_the_logarithms_of_its_levels_evenly():
    schedule = EDMSchedule(sigma_min=0.01, sigma_max=100.0)
    u = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.01, 0.1, 1.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.timestep_to_sigma(timesteps_at(schedule, u)), expected)


def test_logit_normal_timesteps_have_their_logit_s_mean_and_deviation():
    u = LogitNormalTimesteps(mean=0.7, std=1.5).draw(20_000, torch.Generator().manual_seed(0))
    logits = torch.log(u / (1 - u))
    assert logits.mean().item() == pytest.approx(0.7, abs=0.05)  # standard error 0.011
    assert logits.std().item() == pytest.approx(1.5, abs=0.05)


def test_stratified_timesteps_take_one_level_from_each_equally_likely_part():
    distribution, generator = LogitNormalTimesteps(mean=0.7, std=1.5, stratified=True), torch.Generator().manual_seed(1)
    draws = [distribution.draw(64, generator) for _ in range(200)]
    for u in draws:
        part = (64 * torch.special.ndtr((torch.logit(u) - 0.7) / 1.5)).floor().long()
        assert sorted(part.tolist()) == list(range(64))
    assert draws[0].tolist() != sorted(draws[0].tolist()), "rows must not be ordered by noise"
    assert torch.logit(torch.cat(draws)).mean().item() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("build", [lambda gamma: Ddpm(min_snr_gamma=gamma), lambda gamma: Flow(min_snr_gamma=gamma)])
def test_presets_weigh_by_min_snr_where_it_is_asked_for(build):
    assert build(2.5).build().weighting == MinSNRWeighting(gamma=2.5)
    assert build(None).build().weighting == ConstantWeighting()


def test_presets_are_what_they_are_called():
    ddpm, flow = Ddpm(), Flow(mean=0.3, std=0.7)
    assert (ddpm.build().parameterization, ddpm.build().timesteps) == (Epsilon(), UniformTimesteps())
    assert flow.build().timesteps == LogitNormalTimesteps(mean=0.3, std=0.7)
    assert replace(flow, timesteps="uniform").build().timesteps == UniformTimesteps()


def test_labels_are_dropped_row_by_row():
    labels = torch.arange(10_000) % 10
    dropped = drop_labels(labels, 0.2, 10, torch.Generator().manual_seed(0)) == 10
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.02)
    batches = dropped.reshape(-1, 10).sum(1)
    assert ((batches > 0) & (batches < 10)).double().mean() > 0.8  # all or none would be dropping whole batches
    torch.testing.assert_close(
        drop_labels(labels, 0.2, 10, torch.Generator().manual_seed(0))[~dropped], labels[~dropped]
    )


def test_labels_stay_when_none_are_to_be_dropped():
    labels = torch.arange(10)
    assert drop_labels(labels, 0.0, 10, torch.Generator().manual_seed(0)).equal(labels)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Ddpm(prediction="velocity"), "objective.prediction"),
        (lambda: Ddpm(schedule="sine"), "objective.schedule"),
        (lambda: Ddpm(min_snr_gamma=0.0), "weighting.gamma"),
        (lambda: TruncatedSNRWeighting(limit=0.0), "weighting.limit"),
        (lambda: Flow(timesteps="beta"), "objective.timesteps"),
        (lambda: Flow(std=0.0), "timesteps.std"),
        (
            lambda: Objective(parameterization=Velocity(), schedule=NoiseSchedule.linear()),
            "objective.parameterization",
        ),
    ],
)
def test_impossible_objectives_are_refused(build, field):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.field == field
