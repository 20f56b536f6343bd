"""What a network is asked about a canvas, and what its outputs mean."""

import math

import pytest
import torch

from tests.golden.minis import M15, build, conditioning_for
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.guidance import Perturbation
from undertow.diffusion.parameterizations import Epsilon
from undertow.diffusion.schedules import NoiseSchedule
from undertow.engine.evaluation import BranchInput, Network, evaluate
from undertow.engine.forward import forward
from undertow.engine.layout import Layout
from undertow.engine.rows import Outcome, Row
from undertow.schedulers.betas import ScaledLinearBetas
from undertow.unet.free_u import FreeU

SIGMA = 3.0
ROUNDING = 1e-5
LOOK = ("mid_block",)


@pytest.fixture(scope="module")
def network():
    schedule = NoiseSchedule(betas=ScaledLinearBetas())
    return Network(unet=build(M15), preconditioning=Preconditioning(parameterization=Epsilon(), schedule=schedule))


def text(seed: int):
    return conditioning_for(M15, batch=1, seed=seed)


def canvas(width: int = 8) -> torch.Tensor:
    return SIGMA * torch.randn(1, 4, 8, width, generator=torch.Generator().manual_seed(2))


def answered(asking, respond) -> tuple[list[Row], list]:
    """The rows that were asked for, and the outputs when `respond(index)` is what the network predicts for each."""
    rows = list(next(asking))
    outcomes = [respond(index) for index in range(len(rows))]
    with pytest.raises(StopIteration) as finished:
        asking.send(outcomes)
    return rows, finished.value.value


def constant(index: int, columns: int = 8) -> Outcome:
    return Outcome(prediction=torch.full((1, 4, 8, columns), float(index)))


def test_an_answer_is_what_the_prediction_means(network):
    """x - sigma eps, and the network saw x / sqrt(1 + sigma^2) (Karras et al. 2022, C.3.1)."""
    x = canvas()
    branches = [BranchInput(name=name, conditioning=text(seed)) for seed, name in enumerate(("cond", "uncond"))]
    rows, outputs = answered(evaluate(network, Layout.whole((8, 8)), x, SIGMA, branches), constant)
    assert [answer.name for answer in outputs] == ["cond", "uncond"]
    for index, (row, answer) in enumerate(zip(rows, outputs, strict=True)):
        torch.testing.assert_close(row.latents, x / math.sqrt(1 + SIGMA**2))
        assert row.unet is network.unet
        assert row.conditioning is branches[index].conditioning
        torch.testing.assert_close(answer.denoised, x - SIGMA * index)
        assert answer.prediction.eq(index).all()
        assert answer.observations == {}
    expected = network.preconditioning.schedule.sigma_to_timestep(torch.tensor([SIGMA], dtype=torch.float64))
    assert float(rows[0].timestep) == pytest.approx(float(expected))


def test_every_question_goes_through_all_windows(network):
    layout = Layout(size=(8, 12), window=(8, 8), overlap=0.5)
    x = canvas(12)
    branches = [BranchInput(name=name, conditioning=text(seed)) for seed, name in enumerate("ab")]
    rows, outputs = answered(evaluate(network, layout, x, SIGMA, branches), constant)
    scaled = x / math.sqrt(1 + SIGMA**2)
    assert len(rows) == 4
    for index, row in enumerate(rows):
        left = 4 * (index % 2)
        torch.testing.assert_close(row.latents, scaled[..., left : left + 8])
        assert row.conditioning is branches[index // 2].conditioning
    # The mean where windows overlap, in columns 4 to 7.
    assert outputs[0].prediction[0, 0, 0].tolist() == [0] * 4 + [0.5] * 4 + [1] * 4
    assert outputs[1].prediction[0, 0, 0].tolist() == [2] * 4 + [2.5] * 4 + [3] * 4


def test_what_a_question_brings_is_in_its_rows(network):
    extra = torch.full((1, 5, 8, 8), 7.0, dtype=torch.float64)
    perturbation, free_u = Perturbation(kind="identity"), FreeU(b1=1.1)
    branches = [
        BranchInput(name="plain", conditioning=text(0)),
        BranchInput(name="all", conditioning=text(1), extra=extra, perturbation=perturbation, observed=LOOK),
    ]
    seen = torch.rand(1, 4, 4)

    def respond(index):
        return Outcome(prediction=torch.zeros(1, 4, 8, 8), observations={"mid_block": seen, "up_blocks.0": seen + 1})

    (plain, row), outputs = answered(
        evaluate(network, Layout.whole((8, 8)), canvas(), SIGMA, branches, free_u), respond
    )
    assert plain.latents.shape == (1, 4, 8, 8)
    assert row.latents.shape == (1, 9, 8, 8)
    assert row.latents.dtype == plain.latents.dtype
    assert row.latents[:, 4:].eq(7).all()
    assert (plain.perturbation, row.perturbation) == (None, perturbation)
    assert (plain.observed, row.observed) == ((), LOOK)
    assert plain.free_u == row.free_u == free_u
    assert [dict(answer.observations) for answer in outputs] == [{}, {"mid_block": seen}]
    assert plain.adapters is None


def row_of(network, seed: int, **settings) -> Row:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Row(unet=network.unet, latents=x, timestep=torch.tensor([500.0]), conditioning=text(seed), **settings)


@torch.no_grad()
@pytest.mark.parametrize("observed", [(), LOOK])
def test_padded_forwards_give_as_many_outcomes_as_rows(network, observed):
    rows = [row_of(network, seed, observed=observed if seed else ()) for seed in range(2)]
    sizes = []
    hook = network.unet.conv_in.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found, plain, beyond = forward(rows, padded_to=4), forward(rows), forward(rows, padded_to=1)
    hook.remove()
    assert sizes == [4, 2, 2]
    assert len(found) == len(plain) == len(beyond) == 2
    for one, other, row in zip(found, plain, rows, strict=True):
        alone = network.unet(row.latents, row.timestep, row.conditioning)
        for outcome in (one, other):
            torch.testing.assert_close(outcome.prediction, alone, rtol=0, atol=ROUNDING * float(alone.abs().max()))
            assert tuple(outcome.observations) == row.observed


def test_rows_that_cannot_share_a_forward_have_other_keys(network):
    one = row_of(network, 0)
    assert one.key == row_of(network, 1).key
    for other in (
        Row(unet=build(M15, seed=3), latents=one.latents, timestep=one.timestep, conditioning=one.conditioning),
        Row(unet=one.unet, latents=one.latents[..., :4], timestep=one.timestep, conditioning=one.conditioning),
        Row(unet=one.unet, latents=one.latents.double(), timestep=one.timestep, conditioning=one.conditioning),
        Row(
            unet=one.unet,
            latents=one.latents,
            timestep=one.timestep,
            conditioning=conditioning_for(M15, batch=1, tokens=3),
        ),
    ):
        assert other.key != one.key
