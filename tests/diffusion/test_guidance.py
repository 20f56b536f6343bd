from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from undertow.diffusion import ClassifierFree, Denoiser, Epsilon, NoiseSchedule, VPrediction
from undertow.errors import InvalidInput

SCHEDULE = NoiseSchedule.scaled_linear()


@dataclass
class Tokens:
    """The least conditioning: context and which of its tokens are real."""

    context: Tensor
    mask: Tensor


def tokens(count: int, seed: int) -> Tokens:
    context = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Tokens(context, torch.ones(2, count, dtype=torch.bool))


def join(parts) -> Tokens:
    longest = max(part.context.shape[1] for part in parts)
    padded = [
        (F.pad(p.context, (0, 0, 0, longest - p.context.shape[1])), F.pad(p.mask, (0, longest - p.mask.shape[1])))
        for p in parts
    ]
    contexts, masks = zip(*padded, strict=True)
    return Tokens(torch.cat(contexts), torch.cat(masks))


class AttentiveNetwork:
    """Mean over real tokens of a product with x: depends on every input, and counts its calls and rows."""

    def __init__(self):
        self.rows: list[int] = []

    def __call__(self, x: Tensor, timesteps: Tensor, conditioning: Tokens) -> Tensor:
        self.rows.append(len(x))
        weights = conditioning.mask / conditioning.mask.sum(1, keepdim=True)
        pooled = (weights[:, :, None] * conditioning.context.tanh()).sum(1)
        return torch.sin(x + pooled) + timesteps[:, None] / 1000


def guided(scale: float, unconditional: Tokens, network=None, parameterization=None, *, sigma=2.0) -> Tensor:
    """The guided estimate of X, both branches in one call of the network."""
    guidance = ClassifierFree(scale=scale)
    denoiser = Denoiser(
        network=AttentiveNetwork() if network is None else network,
        parameterization=Epsilon() if parameterization is None else parameterization,
        schedule=SCHEDULE,
    )
    branches = {"conditional": tokens(77, seed=0), "unconditional": unconditional}
    rows, count = X.repeat(len(guidance.branches), 1), len(guidance.branches)
    sigmas = sigma if isinstance(sigma, Tensor) else torch.full((len(X),), sigma, dtype=torch.float64)
    denoised = denoiser(rows, sigmas.repeat(count), join([branches[branch] for branch in guidance.branches]))
    return guidance.combine(denoised.chunk(count))


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("parameterization", [Epsilon(), VPrediction()], ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5, -1.0])
@pytest.mark.parametrize("count", [77, 154, 1])
def test_guidance_is_the_formula_on_predictions_whatever_the_token_counts(scale: float, count: int, parameterization):
    """R38, T8: one call for both branches equals two separate calls combined as uncond + scale (cond - uncond)."""
    network, sigma = AttentiveNetwork(), torch.tensor([3.0, 0.7], dtype=torch.float64)
    unconditional = tokens(count, seed=1)
    denoised = guided(scale, unconditional, network, parameterization, sigma=sigma)
    assert network.rows == [4]

    x_in, timesteps = X / (1 + sigma**2).sqrt()[:, None], SCHEDULE.sigma_to_timestep(sigma).float()
    cond, uncond = network(x_in, timesteps, tokens(77, seed=0)), network(x_in, timesteps, unconditional)
    expected = parameterization.denoised(uncond + scale * (cond - uncond), X, sigma)
    torch.testing.assert_close(denoised, expected, rtol=1e-10, atol=1e-10)


def test_scale_1_runs_the_conditional_branch_alone():
    """T8: half the rows, and no unconditional conditioning is needed."""
    network = AttentiveNetwork()
    alone = guided(1.0, tokens(9, seed=1), network)
    assert network.rows == [2]
    torch.testing.assert_close(alone, guided(1 + 1e-9, tokens(9, seed=1)), rtol=1e-7, atol=1e-7)


@given(scale=st.floats(-20, 20))
def test_equal_branches_cancel(scale: float):
    result = torch.tensor([[1.5, -2.0]], dtype=torch.float64)
    combined = ClassifierFree(scale=scale).combine([result] * len(ClassifierFree(scale=scale).branches))
    torch.testing.assert_close(combined, result)


def test_half_precision_is_combined_in_float32():
    """R143: only the result is rounded to float16; the difference of the branches may be beyond its range."""
    uncond, cond = torch.tensor([[60000.0]]).half(), torch.tensor([[59968.0]]).half()
    combined = ClassifierFree(scale=-30.0 / 32.0).combine([uncond, cond])
    assert (combined.dtype, combined.item()) == (torch.float16, 60032.0)  # 60030, rounded once
    assert ClassifierFree(scale=4.0).combine([-uncond, uncond]).isinf().all()  # 420000 has no float16
    finite = ClassifierFree(scale=0.5).combine([-uncond, uncond])  # the difference alone overflows float16
    assert finite.item() == 0


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_scales_that_are_not_finite_are_refused(scale: float):
    with pytest.raises(InvalidInput, match="guidance scale"):
        ClassifierFree(scale=scale)
