"""Samplers on the flow path by a change of variables."""

import pytest
import torch

from tests.sampling.problem import best_denoiser, run, smooth, with_unconditional
from undertow.diffusion import FlowSchedule, RectifiedFlow, VariancePreserving
from undertow.errors import InvalidInput
from undertow.sampling import SAMPLERS, NoiseSource, along_flow, drive, euler, start_sampler

FLOW = [0.95, 0.8, 0.5, 0.2, 0.05]
RATIOS = [sigma / (1 - sigma) for sigma in FLOW]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, and a path drawn in float32 between slightly different levels
MAPPED = [name for name, entry in SAMPLERS.items() if RectifiedFlow in entry.paths and not entry.native_flow]


@pytest.mark.parametrize("name", MAPPED)
def test_the_run_is_that_along_the_ratios(name: str):
    """Guided samplers have unlike estimates, both of x0."""
    x = NoiseSource([3, 4]).draw((5,)).double()
    estimate = with_unconditional(smooth, apart=0.1)
    on_flow = start_sampler(name, x * (1 - FLOW[0]), FLOW, path=RectifiedFlow(), noise=NoiseSource([1, 2]))
    flow = drive(on_flow, lambda x, sigma: estimate(x / (1 - sigma), sigma / (1 - sigma)))
    there = drive(SAMPLERS[name].function(x, RATIOS, noise=NoiseSource([1, 2])), estimate)
    torch.testing.assert_close(flow, there * (1 - FLOW[-1]), **CLOSE)


def test_euler_is_the_same_either_way():
    x = NoiseSource([3, 4]).draw((5,)).double()
    mapped = drive(along_flow(euler, x, FLOW), smooth)
    torch.testing.assert_close(mapped, drive(euler(x, FLOW), smooth), **CLOSE)


@pytest.mark.parametrize("name", ["euler", "euler_a"])
def test_pure_noise_is_a_place_to_start_from(name: str):
    calls: list[float] = []

    def denoise(x, sigma: float):
        calls.append(sigma)
        return best_denoiser(RectifiedFlow())(x, sigma)

    end = run(name, NoiseSource([1]).draw((4,)), [1.0, 0.5, 0.0], denoise, path=RectifiedFlow())
    assert end.isfinite().all()
    assert calls == [1.0, 0.5]


def test_churn_on_the_flow_path_is_mapped_too():
    x = NoiseSource([3]).draw((20_000,)).double()
    sigmas = [1 - index / 60 for index in range(61)]
    end = run("euler", x, sigmas, best_denoiser(RectifiedFlow()), path=RectifiedFlow(), s_churn=20.0)
    assert end.std().item() == pytest.approx(0.5, rel=0.12)  # 60 steps of first order


def test_levels_beyond_the_path_are_refused_at_once():
    with pytest.raises(InvalidInput, match="at most 1, on the flow path"):
        start_sampler("ddpm", torch.ones(1, 2), [1.5, 0.5], path=RectifiedFlow(), noise=NoiseSource([1]))


def test_the_dtype_of_the_start_is_that_of_the_end():
    x = NoiseSource([1]).draw((4,)).half()
    assert run("euler_a", x, FLOW, best_denoiser(RectifiedFlow()), path=RectifiedFlow()).dtype == torch.float16
    assert isinstance(VariancePreserving(), SAMPLERS["euler_a"].paths)


def test_pure_noise_stands_at_the_models_own_last_level():
    """ComfyUI's `percent_to_sigma(1e-4)`: with shift 3, 3 * 0.9999 / (1 + 2 * 0.9999); without, 0.9999."""
    for shift in (1.0, 3.0):
        ratios: list[float] = []

        def inner(x, sigmas, found=ratios, **_):
            found.extend(sigmas)
            return euler(x, sigmas)

        along_flow(inner, torch.ones(1, 2), [1.0, 0.5, 0.0], schedule=FlowSchedule(shift=shift))
        last = shift * 0.9999 / (1 + (shift - 1) * 0.9999)
        assert ratios[0] == pytest.approx(last / (1 - last), rel=1e-6)
