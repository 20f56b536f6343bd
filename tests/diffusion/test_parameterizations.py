import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.diffusion import (
    PARAMETERIZATIONS,
    EDMPrediction,
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    VPrediction,
    XPrediction,
    find_parameterization,
    snr,
)
from undertow.errors import InvalidInput

ALL = [*PARAMETERIZATIONS.values(), XPrediction(path=RectifiedFlow())]
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64; the worst sigma loses six of sixteen digits
SIGMAS = {
    VariancePreserving: st.floats(0.01, 100),
    VarianceExploding: st.floats(0.01, 100),
    RectifiedFlow: st.floats(0.01, 1),
}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("parameterization", ALL, ids=str)
@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_target_of_the_true_noise_gives_back_the_data(parameterization, data, seed: int):
    sigma = torch.tensor(data.draw(st.lists(SIGMAS[type(parameterization.path)], min_size=2, max_size=2))).double()
    x0, noise = draw(seed, 2, 3, 4), draw(seed + 100, 2, 3, 4)
    x = parameterization.path.add_noise(x0, noise, sigma)
    target = parameterization.target(x0, noise, sigma)
    torch.testing.assert_close(parameterization.denoised(target, x, sigma), x0, **EXACT)
    torch.testing.assert_close(parameterization.prediction_from_denoised(x0, x, sigma), target, **EXACT)


@pytest.mark.parametrize("parameterization", ALL, ids=str)
@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 99))
def test_any_prediction_survives_the_way_to_denoised_and_back(parameterization, data, seed: int):
    """Not only predictions that belong to some data: guidance makes others."""
    sigma = torch.tensor([data.draw(SIGMAS[type(parameterization.path)])]).double()
    prediction, x = draw(seed, 1, 5), draw(seed + 100, 1, 5)
    denoised = parameterization.denoised(prediction, x, sigma)
    torch.testing.assert_close(parameterization.prediction_from_denoised(denoised, x, sigma), prediction, **EXACT)


def test_epsilon_works_on_the_unscaled_x():
    """R163: denoised = x - sigma eps."""
    x, prediction = draw(0, 2, 3), draw(1, 2, 3)
    sigma = torch.tensor([2.0, 0.5]).double()
    expected = x - sigma[:, None] * prediction
    torch.testing.assert_close(PARAMETERIZATIONS["epsilon"].denoised(prediction, x, sigma), expected)


def test_v_is_the_rotation_of_its_paper():
    """v = sqrt(abar) noise - sqrt(1 - abar) x0 (arXiv:2202.00512, appendix D)."""
    schedule = NoiseSchedule.scaled_linear()
    abar = schedule.alphas_cumprod[[3, 700]][:, None]
    x0, noise = draw(0, 2, 3), draw(1, 2, 3)
    expected = abar.sqrt() * noise - (1 - abar).sqrt() * x0
    torch.testing.assert_close(VPrediction().target(x0, noise, schedule.sigmas[[3, 700]]), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_edm_scales_are_those_of_its_table(sign: int):
    """arXiv:2206.00364, table 1: D = c_skip x + c_out F; models that began with v have the other sign."""
    x, prediction = draw(0, 2, 3), draw(1, 2, 3)
    sigma, data = torch.tensor([[2.0], [0.3]]).double(), 1.5
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sign * sigma * data / (sigma**2 + data**2).sqrt()
    network = EDMPrediction(path=VarianceExploding(data), v=sign < 0)
    torch.testing.assert_close(network.denoised(prediction, x, sigma[:, 0]), c_skip * x + c_out * prediction)


def test_names_mean_their_parameterizations():
    assert find_parameterization("edm") == EDMPrediction(path=VarianceExploding(0.5), v=False)
    assert find_parameterization("edm_v") == EDMPrediction(path=VarianceExploding(0.5), v=True)
    assert find_parameterization("x0") == XPrediction(path=VariancePreserving())


def test_velocity_points_from_data_to_noise():
    """Trap T14."""
    x0, noise = draw(0, 2, 3), draw(1, 2, 3)
    torch.testing.assert_close(PARAMETERIZATIONS["velocity"].target(x0, noise, torch.tensor([0.2, 0.9])), noise - x0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parameterization", ALL, ids=str)
def test_half_precision_is_rounded_once_at_the_end(parameterization, dtype: torch.dtype):
    """R143: the arithmetic happens in float32, so the result is the rounding of the exact one."""
    sigma = torch.tensor([0.9, 0.03])
    x, prediction = draw(0, 2, 64).to(dtype), draw(1, 2, 64).to(dtype)
    exact = parameterization.denoised(prediction.double(), x.double(), sigma.double())
    result = parameterization.denoised(prediction, x, sigma)
    assert result.dtype == dtype
    torch.testing.assert_close(result, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'epsilon'"):
        find_parameterization("epsilom")
    assert find_parameterization("v") == VPrediction()


class TestPaths:
    def test_the_networks_input_is_ddpms_variable(self):
        """R162: c_in x = sqrt(abar) x0 + sqrt(1 - abar) noise, and c_in = sqrt(abar)."""
        schedule, path = NoiseSchedule.linear(), VariancePreserving()
        timesteps = torch.tensor([0, 400, 999])
        sigma, abar = schedule.sigmas[timesteps], schedule.alphas_cumprod[timesteps][:, None]
        x0, noise = draw(0, 3, 4), draw(1, 3, 4)
        x_in = path.input_scale(sigma)[:, None] * path.add_noise(x0, noise, sigma)
        torch.testing.assert_close(x_in, abar.sqrt() * x0 + (1 - abar).sqrt() * noise)
        torch.testing.assert_close(path.input_scale(sigma)[:, None], abar.sqrt())

    def test_flow_runs_straight_from_data_to_noise(self):
        path, x0, noise = RectifiedFlow(), draw(0, 3, 4), draw(1, 3, 4)
        x = path.add_noise(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
        torch.testing.assert_close(x[0], x0[0])
        torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * noise[1])
        torch.testing.assert_close(x[2], noise[2])
        assert path.input_scale(torch.tensor([0.3])).item() == 1

    def test_sampling_starts_where_the_networks_input_has_variance_1(self):
        """R191: the magnitude of the first scaled input."""
        noise = draw(0, 2, 10)
        path, sigma = VariancePreserving(), 14.6
        start = path.pure_noise(noise, sigma)
        torch.testing.assert_close(path.input_scale(torch.tensor([sigma]).double()) * start, noise)
        torch.testing.assert_close(RectifiedFlow().pure_noise(noise, 1.0), noise)
        torch.testing.assert_close(RectifiedFlow().pure_noise(noise, 0.5), noise / 2)

    def test_edm_starts_from_sigma_noise_and_scales_by_the_size_of_its_data(self):
        """arXiv:2206.00364, algorithm 2, line 2, and c_in of table 1: x0 has deviation sigma_data, 0.5 of images."""
        noise, sigma = draw(0, 2, 10), torch.tensor([0.002, 3.0, 80.0]).double()
        for path, data in ((VarianceExploding(), 0.5), (VarianceExploding(1.5), 1.5)):
            torch.testing.assert_close(path.pure_noise(noise, 80.0), 80 * noise)
            torch.testing.assert_close(path.input_scale(sigma), 1 / (data**2 + sigma**2).sqrt())
            torch.testing.assert_close(path.add_noise(noise[:1], noise[1:], sigma[1:2]), noise[:1] + 3 * noise[1:])

    def test_signal_to_noise_ratio(self):
        schedule = NoiseSchedule.linear()
        abar = schedule.alphas_cumprod
        torch.testing.assert_close(snr(VariancePreserving(), schedule.sigmas), abar / (1 - abar))
        torch.testing.assert_close(snr(RectifiedFlow(), torch.tensor([0.5, 0.2])), torch.tensor([1.0, 16.0]))
        torch.testing.assert_close(snr(VarianceExploding(), torch.tensor([0.5, 2.0])), torch.tensor([4.0, 0.25]))

    @pytest.mark.parametrize("path", [VariancePreserving(), VarianceExploding(), RectifiedFlow()])
    def test_all_paths_obey_the_samplers_equation(self, path):
        """dx/dsigma = (x - x0) / sigma along the path of one image."""
        x0, noise = draw(0, 1, 5), draw(1, 1, 5)
        sigma, h = torch.tensor([0.6]).double(), 1e-6
        slope = (path.add_noise(x0, noise, sigma + h) - path.add_noise(x0, noise, sigma - h)) / (2 * h)
        torch.testing.assert_close(slope, (path.add_noise(x0, noise, sigma) - x0) / sigma, rtol=1e-6, atol=1e-8)

    def test_half_precision_noise_is_mixed_in_float32(self):
        x0, noise = draw(0, 1, 50).half(), draw(1, 1, 50).half()
        exact = x0.double() + 4000.0 * noise.double()
        mixed = VariancePreserving().add_noise(x0, noise, torch.tensor([4000.0]))
        assert mixed.dtype == torch.float16
        torch.testing.assert_close(mixed, exact.half(), rtol=1e-3, atol=0)
