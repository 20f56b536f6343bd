"""Random estimates for guidance methods, and a driver that answers what they ask for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from undertow.diffusion import Epsilon, Parameterization
from undertow.diffusion.guidance import (
    Branch,
    Estimate,
    Evaluation,
    Guidance,
    GuidanceRun,
    Guided,
    Method,
    Step,
    sigmas_at,
)

SHAPE = (3, 4, 6, 8)


def normal(seed: int, shape: Sequence[int] = SHAPE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(index: int = 0, count: int = 10, sigma: float = 2.0) -> Step:
    return Step(index=index, count=count, sigma=sigma)


def finish(combining, answer: Callable[[Evaluation], Estimate] | None = None) -> Guided:
    """Run `combine` to its end."""
    reply = None
    while True:
        try:
            evaluation = combining.send(reply)
        except StopIteration as ended:
            return ended.value
        assert answer is not None, "no further evaluation was expected"
        reply = answer(evaluation)


def combine(
    methods: Sequence[Method],
    predictions: dict[Branch, Tensor],
    x: Tensor,
    at: Step,
    parameterization: Parameterization | None = None,
    run: GuidanceRun | None = None,
) -> Tensor:
    """The guided prediction from predictions, as diffusers' guiders compute it."""
    parameterization = Epsilon() if parameterization is None else parameterization
    guidance = Guidance(methods=tuple(methods))
    run = guidance.start(at.count, parameterization) if run is None else run
    sigmas = sigmas_at(at, x)
    estimates = {
        branch: Estimate(denoised=parameterization.denoised(predictions[branch], x, sigmas))
        for branch in guidance.branches(at)
    }
    return parameterization.prediction_from_denoised(finish(run.combine(at, x, estimates)).denoised, x, sigmas)
