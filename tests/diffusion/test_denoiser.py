import pytest
import torch

from undertow.diffusion import (
    Denoiser,
    Epsilon,
    FlowSchedule,
    NoiseSchedule,
    Velocity,
    VPrediction,
    XPrediction,
)
from undertow.errors import ConfigError, InvalidInput

SCHEDULE = NoiseSchedule.scaled_linear()


class Recorder:
    """A network that remembers what it was given and answers with a fixed prediction."""

    def __init__(self, prediction: torch.Tensor):
        self.prediction = prediction
        self.seen: tuple = ()

    def __call__(self, x_in, timesteps, conditioning):
        self.seen = (x_in, timesteps, conditioning)
        return self.prediction


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("timestep_map", ["interpolated", "nearest"])
def test_the_network_sees_scaled_input_timesteps_and_conditioning(timestep_map: str):
    """R162, R164: only the network's input is scaled; sigma becomes the timestep that was trained."""
    network = Recorder(noise(2, 3, 4, 4, seed=1))
    denoiser = Denoiser(network=network, parameterization=Epsilon(), schedule=SCHEDULE, timestep_map=timestep_map)
    x, sigma = noise(2, 3, 4, 4), torch.tensor([1.234, 7.0])
    denoised = denoiser(x, sigma, "prompt")
    x_in, timesteps, conditioning = network.seen
    torch.testing.assert_close(x_in, x / (1 + sigma**2).sqrt()[:, None, None, None])
    torch.testing.assert_close(timesteps, SCHEDULE.sigma_to_timestep(sigma, timestep_map).float())
    assert (timesteps.dtype, conditioning) == (torch.float32, "prompt")
    assert (timestep_map == "nearest") == (timesteps == timesteps.round()).all()
    torch.testing.assert_close(denoised, x - sigma[:, None, None, None] * network.prediction)


def test_a_flow_network_sees_x_as_it_is():
    network = Recorder(noise(2, 5, seed=1))
    denoiser = Denoiser(network=network, parameterization=Velocity(), schedule=FlowSchedule(shift=3.0))
    x, sigma = noise(2, 5), torch.tensor([0.25, 1.0])
    denoised = denoiser(x, sigma, None)
    assert torch.equal(network.seen[0], x)
    assert network.seen[1].tolist() == [250, 1000]
    torch.testing.assert_close(denoised, x - sigma[:, None] * network.prediction)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("parameterization", [Epsilon(), VPrediction(), XPrediction()], ids=str)
def test_the_dtype_of_x_is_kept_and_sigma_arithmetic_is_not_in_half(parameterization, dtype: torch.dtype):
    """R143: 200 + 1 squared has no place in float16 sigma arithmetic; 4096 squared overflows it."""
    schedule = SCHEDULE.rescale_zero_terminal_snr()
    network = Recorder(noise(1, 50, seed=1).to(dtype))
    denoiser = Denoiser(network=network, parameterization=parameterization, schedule=schedule)
    denoised = denoiser((4096 * noise(1, 50)).to(dtype), torch.tensor([4096.0]), None)
    assert (denoised.dtype, network.seen[0].dtype) == (dtype, dtype)
    assert denoised.isfinite().all()
    torch.testing.assert_close(network.seen[0].double(), noise(1, 50).double(), rtol=1e-2, atol=1e-3)


def test_the_network_may_run_in_another_precision_than_x():
    network = Recorder(noise(1, 5, seed=1).bfloat16())
    denoiser = Denoiser(network=network, parameterization=Epsilon(), schedule=SCHEDULE, network_dtype=torch.bfloat16)
    denoised = denoiser(noise(1, 5), torch.tensor([2.0]), None)
    assert (network.seen[0].dtype, denoised.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(denoised, noise(1, 5) - 2 * network.prediction.float())


@pytest.mark.parametrize(
    ("parameterization", "schedule"),
    [(Velocity(), SCHEDULE), (Epsilon(), FlowSchedule()), (XPrediction(), FlowSchedule())],
)
def test_a_parameterization_of_another_path_is_refused(parameterization, schedule):
    with pytest.raises(ConfigError, match="path of the schedule"):
        Denoiser(network=Recorder(noise(1)), parameterization=parameterization, schedule=schedule)


def test_sigmas_of_another_family_are_refused_before_the_network_runs():
    network = Recorder(noise(1, 5))
    denoiser = Denoiser(network=network, parameterization=Velocity(), schedule=FlowSchedule())
    with pytest.raises(InvalidInput, match="sigma is"):
        denoiser(noise(1, 5), torch.tensor([14.6]), None)
    assert network.seen == ()


def test_without_a_word_timesteps_are_interpolated_and_the_network_runs_in_the_precision_of_x():
    denoiser = Denoiser(network=Recorder(noise(1)), parameterization=Epsilon(), schedule=SCHEDULE)
    assert (denoiser.timestep_map, denoiser.network_dtype) == ("interpolated", None)
