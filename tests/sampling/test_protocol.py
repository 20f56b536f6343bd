import math

import pytest
import torch
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.sampling import ModelCall, NoiseSource, Sampler, ddim, ddpm, dpmpp_2m, drive, euler, euler_a, heun

AGREE = 1e-12  # float64; only the order of rows in one call differs

GRID = {n: [10.0 * (0.01 / 10) ** (i / n) for i in range(n)] + [0.0] for n in (5, 7, 11, 13)}


def start(seed: int) -> Tensor:
    return 10 * NoiseSource([seed, seed + 1]).draw((3, 4)).double()


def denoise_rows(x: Tensor, sigmas: Tensor) -> Tensor:
    """A denoiser with its own sigma for every row."""
    sigma = sigmas[:, None, None]
    return torch.tanh(x / (1 + sigma**2)) * torch.cos(sigma / 7)


def run_together(samplers: list[Sampler]) -> tuple[list[Tensor], int]:
    """Continuous batching in small: every round evaluates what all living samplers ask for in one call."""
    finished: dict[int, Tensor] = {}
    asked: dict[int, ModelCall] = {index: next(sampler) for index, sampler in enumerate(samplers)}
    rounds = 0
    while asked:
        rounds += 1
        sigmas = torch.cat([torch.full((len(call.x),), call.sigma).double() for call in asked.values()])
        results = denoise_rows(torch.cat([call.x for call in asked.values()]), sigmas)
        parts = results.split([len(call.x) for call in asked.values()])
        for (index, _), part in zip(list(asked.items()), parts, strict=True):
            try:
                asked[index] = samplers[index].send(part)
            except StopIteration as done:
                finished[index] = done.value
                del asked[index]
    return [finished[index] for index in range(len(samplers))], rounds


def make() -> list[Sampler]:
    return [
        euler(start(0), GRID[13]),
        heun(start(10), GRID[5]),
        dpmpp_2m(start(20), GRID[7]),
        euler_a(start(30), GRID[11], noise=NoiseSource([1, 2])),
    ]


def test_unlike_samplers_driven_together_equal_each_alone():
    together, rounds = run_together(make())
    alone = [
        drive(sampler, lambda x, sigma: denoise_rows(x, torch.full((len(x),), sigma).double())) for sampler in make()
    ]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=AGREE, atol=AGREE)
    assert rounds == 13  # the longest request; one after the other would be 13 + 9 + 7 + 11 calls


def test_a_stop_iteration_of_the_denoiser_is_not_taken_for_the_end():
    def broken(x: Tensor, sigma: float) -> Tensor:
        raise StopIteration

    with pytest.raises(StopIteration):
        drive(euler(start(0), GRID[5]), broken)


def test_cancelling_is_dropping_the_generator():
    sampler = euler(start(0), GRID[5])
    next(sampler)
    sampler.close()
    with pytest.raises(StopIteration):
        next(sampler)


def test_the_start_is_not_written_into():
    for sampler in (euler, heun, dpmpp_2m, ddim):
        x = start(0)
        drive(sampler(x, GRID[5]), lambda x, sigma: x / 2)
        assert torch.equal(x, start(0))


# Refused when the sampler is started, before its first step: nothing here calls next().


@pytest.mark.parametrize("sigmas", [[], [1.0], [1.0, 2.0], [1.0, 0.5, 0.5], [1.0, math.nan], [1.0, -0.1]])
@pytest.mark.parametrize("sampler", [ddim, euler, heun, dpmpp_2m])
def test_impossible_grids_are_refused(sampler, sigmas: list[float]):
    with pytest.raises(InvalidInput, match="strictly decreasing"):
        sampler(start(0), sigmas)


@pytest.mark.parametrize("sampler", [ddpm, euler_a])
def test_missing_noise_is_refused(sampler):
    with pytest.raises(InvalidInput, match="draws noise"):
        sampler(start(0), GRID[5])


def test_missing_noise_for_ddim_with_eta_is_refused_at_its_first_draw():
    with pytest.raises(InvalidInput, match="ddim with eta > 0 draws noise"):
        drive(ddim(start(0), GRID[5], eta=0.5), lambda x, sigma: x / 2)


@pytest.mark.parametrize("sampler", [ddpm, euler_a, ddim, euler])
def test_seeds_for_another_batch_are_refused(sampler):
    with pytest.raises(InvalidInput, match="seeds is 3 seeds, expected 2"):
        sampler(start(0), GRID[5], noise=NoiseSource([1, 2, 3]))


def test_unknown_options_are_refused():
    with pytest.raises(InvalidInput, match="'etaa', expected one of eta, s_noise for euler_a"):
        euler_a(start(0), GRID[5], noise=NoiseSource([1, 2]), etaa=1.0)
    with pytest.raises(InvalidInput, match="no option for dpmpp_2m"):
        dpmpp_2m(start(0), GRID[5], eta=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_impossible_options_are_refused(value: float):
    with pytest.raises(InvalidInput, match="eta is"):
        ddim(start(0), GRID[5], eta=value)


def test_a_guided_sampler_is_refused_an_estimate_without_the_unconditional_one():
    from undertow.diffusion.guidance import Guided
    from undertow.sampling.cfg_pp import euler_cfg_pp

    with pytest.raises(InvalidInput, match="unconditional estimate too"):
        drive(euler_cfg_pp(start(0), GRID[5]), lambda x, sigma: x / 2)
    with pytest.raises(InvalidInput, match="unconditional estimate too"):
        drive(euler_cfg_pp(start(0), GRID[5]), lambda x, sigma: Guided(denoised=x / 2))


def test_plain_samplers_receive_a_plain_tensor_from_a_driver_with_both():
    from undertow.diffusion.guidance import Guided

    with_both = drive(euler(start(0), GRID[5]), lambda x, sigma: Guided(denoised=x / 2, unconditional=x))
    assert torch.equal(with_both, drive(euler(start(0), GRID[5]), lambda x, sigma: x / 2))
