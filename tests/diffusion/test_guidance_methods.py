"""The protocol of guidance: which branches are asked for and when, and what methods make of them."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from tests.diffusion.guidance_runs import SHAPE, combine, finish, normal, step
from undertow.diffusion import Epsilon, Parameterization, RectifiedFlow, Velocity, VPrediction, XPrediction
from undertow.diffusion.guidance import (
    CONDITIONAL,
    UNCONDITIONAL,
    Branch,
    ClassifierFree,
    During,
    Estimate,
    Guidance,
    Perturbation,
    Rescale,
    SigmaInterval,
    StepInterval,
)
from undertow.errors import InvalidInput

EXACT = {"rtol": 1e-11, "atol": 1e-11}
"""float64; going from a prediction to an estimate of x0 and back costs a few last digits."""

PARAMETERIZATIONS = [Epsilon(), VPrediction(), XPrediction(), Velocity(), XPrediction(path=RectifiedFlow())]

X = normal(0)
BOTH = {CONDITIONAL: normal(1), UNCONDITIONAL: normal(2)}


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5, -1.0])
@pytest.mark.parametrize("amount", [0.0, 0.7, 1.0])
def test_guidance_and_rescale_are_those_of_diffusers_on_the_prediction(parameterization, scale: float, amount: float):
    """F1: the same numbers whatever the network predicts, although the engine hands over estimates of x0."""
    guider = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=amount)
    expected = guider.forward(*BOTH.values()).pred
    ours = combine((ClassifierFree(scale=scale), Rescale(amount=amount)), BOTH, X, step(sigma=0.6), parameterization)
    torch.testing.assert_close(ours, expected, **EXACT)
    assert (
        amount == 0
        or scale == 0
        or (expected - (BOTH[UNCONDITIONAL] * (1 - scale) + scale * BOTH[CONDITIONAL])).abs().max() > 0.1
    )


@pytest.mark.parametrize("parameterization", [Epsilon(), VPrediction()], ids=str)
def test_rescale_in_v_space_is_comfyuis(parameterization: Parameterization):
    """ComfyUI's RescaleCFG, written out from its node: in v whatever the network predicts."""
    sigma, amount, scale = 2.0, 0.7, 7.5
    ours = combine(
        (ClassifierFree(scale=scale), Rescale(amount=amount, space="v")), BOTH, X, step(sigma=sigma), parameterization
    )
    root = math.sqrt(sigma**2 + 1)
    sigmas = torch.full((len(X),), sigma, dtype=torch.float64)

    def v(prediction: Tensor) -> Tensor:
        return (X / (sigma**2 + 1) - parameterization.denoised(prediction, X, sigmas)) * root / sigma

    conditional, unconditional = v(BOTH[CONDITIONAL]), v(BOTH[UNCONDITIONAL])
    final = rescale_noise_cfg(unconditional + scale * (conditional - unconditional), conditional, amount)
    denoised = X / (sigma**2 + 1) - final * sigma / root
    torch.testing.assert_close(ours, parameterization.prediction_from_denoised(denoised, X, sigmas), **EXACT)
    in_prediction = combine(
        (ClassifierFree(scale=scale), Rescale(amount=amount)), BOTH, X, step(sigma=sigma), parameterization
    )
    agree = torch.allclose(ours, in_prediction)
    assert agree == isinstance(parameterization, VPrediction)


def test_scale_1_asks_for_the_wanted_branch_alone():
    """T8, with a scale for every step: the unconditional branch is run exactly where it counts."""
    assert Guidance(methods=(ClassifierFree(scale=1.0),)).branches(step()) == (CONDITIONAL,)
    guidance = Guidance(methods=(ClassifierFree(scale=(1.0, 4.0, 1.0)),))
    asked = [guidance.branches(step(index, 3)) for index in range(3)]
    assert asked == [(CONDITIONAL,), (CONDITIONAL, UNCONDITIONAL), (CONDITIONAL,)]
    alone = {CONDITIONAL: BOTH[CONDITIONAL]}
    torch.testing.assert_close(combine(guidance.methods, alone, X, step(0, 3)), BOTH[CONDITIONAL], **EXACT)


def test_a_scale_may_be_a_function_of_the_fraction_of_the_run():
    for index in (0, 5, 9):
        ours = combine((ClassifierFree(scale=lambda fraction: 8 - 6 * fraction),), BOTH, X, step(index, 10))
        same = combine((ClassifierFree(scale=8 - 0.6 * index),), BOTH, X, step(index, 10))
        torch.testing.assert_close(ours, same, **EXACT)


@pytest.mark.parametrize("start", [0.0, 0.24, 0.5])
@pytest.mark.parametrize("end", [0.55, 0.99, 1.0])
def test_a_step_interval_is_diffusers_start_and_stop(start: float, end: float):
    guider = ClassifierFreeGuidance(guidance_scale=5.0, start=start, stop=end)
    method = During(method=ClassifierFree(scale=5.0), interval=StepInterval(start=start, end=end))
    steps = 13
    for index in range(steps):
        guider.set_state(step=index, num_inference_steps=steps, timestep=torch.tensor(0))
        branches = Guidance(methods=(method,)).branches(step(index, steps))
        assert len(branches) == guider.num_conditions
        expected = guider.forward(BOTH[CONDITIONAL], BOTH[UNCONDITIONAL] if len(branches) == 2 else None).pred
        ours = combine((method,), {branch: BOTH[branch] for branch in branches}, X, step(index, steps))
        torch.testing.assert_close(ours, expected, **EXACT)


def test_a_sigma_interval_holds_above_low_and_up_to_high():
    method = During(method=ClassifierFree(scale=5.0), interval=SigmaInterval(low=0.28, high=5.42))
    held = [sigma for sigma in (0.1, 0.28, 0.29, 5.42, 5.43) if len(method.asks(step(sigma=sigma))) == 1]
    assert held == [0.29, 5.42]


def test_branches_are_asked_for_once_and_observe_what_anyone_needs():
    @dataclass(frozen=True, kw_only=True)
    class Observing(ClassifierFree):
        names: tuple[str, ...]
        role = "term"

        def asks(self, step):
            return (Branch(side="unconditional", observed=self.names),)

    one, other = Observing(scale=1.0, names=("mid_block",)), Observing(scale=1.0, names=("up_blocks.0", "mid_block"))
    for methods, names in (
        ((ClassifierFree(scale=3.0), one), ("mid_block",)),
        ((one, Rescale(amount=1.0)), ("mid_block",)),
        ((one, other), ("mid_block", "up_blocks.0")),
    ):
        branches = Guidance(methods=methods).branches(step())
        assert branches == (CONDITIONAL, UNCONDITIONAL)
        assert [branch.observed for branch in branches] == [(), names]


def test_the_unconditional_estimate_reaches_samplers_that_step_along_it():
    """CFG++: also at scale 1, where guidance itself does not need it."""
    guidance = Guidance(methods=(ClassifierFree(scale=1.0),), unconditional=True)
    assert guidance.branches(step()) == (CONDITIONAL, UNCONDITIONAL)
    estimates = {branch: Estimate(denoised=BOTH[branch].half()) for branch in guidance.branches(step())}
    guided = finish(guidance.start(10, Epsilon()).combine(step(), X.half(), estimates))
    assert torch.equal(guided.unconditional, BOTH[UNCONDITIONAL].half())
    assert torch.equal(guided.denoised, BOTH[CONDITIONAL].half())
    assert (
        finish(replace(guidance, unconditional=False).start(10, Epsilon()).combine(step(), X, estimates)).unconditional
        is None
    )


def test_rows_do_not_know_each_other():
    """G4: a row's result is the one it has alone, bit for bit."""
    methods = (ClassifierFree(scale=7.5), Rescale(amount=0.7))
    together = combine(methods, BOTH, X, step())
    for row in range(SHAPE[0]):
        one = slice(row, row + 1)
        assert torch.equal(together[one], combine(methods, {b: p[one] for b, p in BOTH.items()}, X[one], step()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree(scale=math.nan), "guidance scale is nan"),
        (lambda: ClassifierFree(scale=(7.5, math.inf)), "guidance scale is inf"),
        (lambda: ClassifierFree(scale=()), "guidance scale is empty"),
        (lambda: ClassifierFree(scale=lambda _: math.inf).asks(step()), "guidance scale is inf"),
        (
            lambda: Guidance(methods=(ClassifierFree(scale=(1.0, 2.0)),)).start(3, Epsilon()),
            "2 numbers, expected one for each of 3",
        ),
        (lambda: ClassifierFree(scale=(1.0, 2.0)).branches, "one for every step, expected one number"),
        (lambda: StepInterval(start=0.7, end=0.2), "interval is 0.7 to 0.2, expected a start before the end"),
        (lambda: StepInterval(start=-0.1), "interval start"),
        (lambda: StepInterval(end=math.nan), "interval end is nan"),
        (lambda: SigmaInterval(low=5.0, high=0.3), "interval is sigma 5 to 0.3"),
        (lambda: SigmaInterval(low=math.nan), "interval"),
        (lambda: Rescale(amount=1.5), "guidance rescale is 1.5"),
        (lambda: Guidance(methods=(Rescale(amount=0.7, space="v"),)).start(3, Velocity()), "the prediction of a flow"),
        (
            lambda: Guidance(methods=(Rescale(amount=0.7), ClassifierFree(scale=2.0))),
            r"Rescale \(finish\), ClassifierFree",
        ),
        (lambda: Guidance(methods=(ClassifierFree(scale=3.0), ClassifierFree(scale=2.0))), "at most one base"),
        (lambda: Perturbation(kind="identity", layers=()), "layers is empty"),
        (lambda: Perturbation(kind="identity", sigma=3.0), "an identity is not blurred"),
        (lambda: Perturbation(kind="blurred"), "sigma is None"),
        (lambda: Perturbation(kind="blurred", sigma=math.nan), "sigma is nan"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message: str):
    with pytest.raises(InvalidInput, match=message):
        make()
