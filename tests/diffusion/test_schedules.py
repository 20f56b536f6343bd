import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from undertow.diffusion import EDMSchedule, FlowSchedule, NoiseSchedule, VarianceExploding
from undertow.diffusion.betas import beta_values
from undertow.errors import ConfigError, InvalidInput
from undertow.schedulers.betas import CosineBetas, LinearBetas, ScaledLinearBetas, TabledBetas
from undertow.schedulers.levels import ZERO_SNR_ALPHA_CUMPROD

SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.scaled_linear(), NoiseSchedule.cosine()]
STABLE_DIFFUSION = NoiseSchedule.scaled_linear()
ROUND_TRIP = 1e-9  # float64, a logarithm and an exponential each way
PUBLISHED = 5e-5  # the published figures have four decimals


def test_stable_diffusion_has_its_published_ends():
    assert STABLE_DIFFUSION.sigma_min == pytest.approx(0.0292, abs=PUBLISHED)
    assert STABLE_DIFFUSION.sigma_max == pytest.approx(14.6146, abs=PUBLISHED)


# Computed with diffusers 0.42.1: DDPMScheduler(beta_schedule=..., ...).alphas_cumprod, float32.
GOLDEN_ALPHAS_CUMPROD = {
    "linear": {
        0: 0.999899983,
        1: 0.999780059,
        250: 0.521422982,
        500: 0.0777966529,
        750: 0.00330015854,
        999: 4.03583035e-05,
    },
    "scaled_linear": {
        0: 0.999149978,
        1: 0.998296022,
        250: 0.673792303,
        500: 0.276332468,
        750: 0.0561698042,
        999: 0.00466009509,
    },
    "cosine": {
        0: 0.999958694,
        1: 0.99991256,
        250: 0.845888019,
        500: 0.492285043,
        750: 0.143178657,
        999: 2.42873499e-09,
    },
}


@pytest.mark.parametrize("name", GOLDEN_ALPHAS_CUMPROD)
def test_alphas_cumprod_are_those_of_the_reference(name: str):
    schedule = getattr(NoiseSchedule, name)()
    for timestep, expected in GOLDEN_ALPHAS_CUMPROD[name].items():
        assert schedule.alphas_cumprod[timestep].item() == pytest.approx(
            expected, rel=2e-4 if expected < 1e-6 else 1e-5
        )


def test_the_name_linear_means_linear_in_beta():
    """Trap T15: Stable Diffusion's schedule is not `linear` here, whatever LDM calls it."""
    same_ends = {"beta_start": 0.00085, "beta_end": 0.012}
    linear = NoiseSchedule.linear(**same_ends)
    scaled = NoiseSchedule.scaled_linear(**same_ends)
    assert beta_values(linear.betas, 1000).diff().std() < 1e-12
    assert beta_values(scaled.betas, 1000).sqrt().diff().std() < 1e-12
    assert linear.sigma_max > 1.5 * scaled.sigma_max


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timestep_0_is_nearly_clean_and_the_last_is_noise(schedule: NoiseSchedule):
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.sigmas.diff().min() > 0
    assert schedule.alphas_cumprod[0] > 0.999
    assert schedule.alphas_cumprod[-1] < 0.005


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(timestep=st.floats(0, 999))
def test_timesteps_survive_the_way_to_sigma_and_back(schedule: NoiseSchedule, timestep: float):
    timesteps = torch.tensor([timestep], dtype=torch.float64)
    back = schedule.sigma_to_timestep(schedule.timestep_to_sigma(timesteps))
    torch.testing.assert_close(back, timesteps, rtol=0, atol=1e3 * ROUND_TRIP)


@pytest.mark.parametrize("mode", ["interpolated", "nearest"])
def test_trained_levels_map_to_their_own_timesteps(mode: str):
    timesteps = STABLE_DIFFUSION.sigma_to_timestep(STABLE_DIFFUSION.sigmas, mode)
    torch.testing.assert_close(timesteps, torch.arange(1000, dtype=torch.float64), rtol=0, atol=ROUND_TRIP)


def test_between_levels_the_two_maps_differ():
    """Trap T19: k-diffusion answers with a fraction, ComfyUI with the nearest trained timestep."""
    between = (STABLE_DIFFUSION.sigmas[500].log() * 0.7 + STABLE_DIFFUSION.sigmas[501].log() * 0.3).exp()[None]
    assert STABLE_DIFFUSION.sigma_to_timestep(between).item() == pytest.approx(500.3, abs=1e-6)
    assert STABLE_DIFFUSION.sigma_to_timestep(between, "nearest").item() == 500


def test_below_the_smallest_trained_sigma_the_timestep_is_0():
    tiny = torch.tensor([0.0, 1e-5])
    assert STABLE_DIFFUSION.sigma_to_timestep(tiny).tolist() == [0, 0]
    assert STABLE_DIFFUSION.sigma_to_timestep(tiny, "nearest").tolist() == [0, 0]


def test_the_maps_take_whole_timesteps_and_float32_sigmas():
    """As the training objective draws them."""
    timesteps = torch.tensor([0, 17, 999])
    sigmas = STABLE_DIFFUSION.timestep_to_sigma(timesteps)
    torch.testing.assert_close(sigmas, STABLE_DIFFUSION.sigmas[timesteps], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        STABLE_DIFFUSION.sigma_to_timestep(sigmas.float()), timesteps.double(), rtol=0, atol=1e-3
    )


class TestZeroTerminalSNR:
    rescaled = STABLE_DIFFUSION.rescale_zero_terminal_snr()

    def test_the_last_level_is_pure_noise_and_the_first_stays(self):
        assert self.rescaled.alphas_cumprod[-1] == 0
        torch.testing.assert_close(
            self.rescaled.alphas_cumprod[0], STABLE_DIFFUSION.alphas_cumprod[0], rtol=1e-12, atol=0
        )

    def test_the_square_root_of_abar_is_an_affine_function_of_the_old_one(self):
        """Algorithm 1 of arXiv:2305.08891 shifts and scales it."""
        old, new = STABLE_DIFFUSION.alphas_cumprod.sqrt(), self.rescaled.alphas_cumprod.sqrt()
        slope = new.diff() / old.diff()
        torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=1e-9, atol=0)

    def test_the_infinite_sigma_has_a_finite_stand_in(self):
        assert self.rescaled.sigmas.isfinite().all()
        assert self.rescaled.sigma_max == pytest.approx(ZERO_SNR_ALPHA_CUMPROD**-0.5, rel=1e-6)
        assert self.rescaled.sigma_max == pytest.approx(4096, rel=1e-6)
        assert self.rescaled.sigmas.diff().min() > 0
        last = torch.tensor([self.rescaled.sigma_max], dtype=torch.float64)
        assert self.rescaled.sigma_to_timestep(last).item() == 999


class TestFlow:
    def test_time_is_0_for_clean_and_1_for_noise_and_the_network_gets_1000_times_it(self):
        schedule = FlowSchedule()
        sigma = torch.tensor([0.0, 0.001, 0.5, 1.0])
        torch.testing.assert_close(
            schedule.sigma_to_timestep(sigma), torch.tensor([0, 1, 500, 1000.0]).double(), rtol=1e-6, atol=0
        )
        assert (schedule.sigma_min, schedule.sigma_max, len(schedule)) == (0.001, 1.0, 1000)

    @given(timestep=st.floats(0, 1000), shift=st.floats(0.1, 10))
    def test_timesteps_survive_the_way_to_sigma_and_back(self, timestep: float, shift: float):
        schedule = FlowSchedule(shift=shift)
        timesteps = torch.tensor([timestep], dtype=torch.float64)
        back = schedule.sigma_to_timestep(schedule.timestep_to_sigma(timesteps))
        torch.testing.assert_close(back, timesteps, rtol=0, atol=1e3 * ROUND_TRIP)

    def test_shift_moves_levels_towards_noise_and_keeps_the_ends(self):
        shifted = FlowSchedule(shift=3.0)
        assert shifted.sigmas[499].item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
        assert shifted.sigma_max == 1

    def test_nearest_takes_a_level_of_the_table(self):
        schedule = FlowSchedule(shift=3.0)
        timestep = schedule.sigma_to_timestep(torch.tensor([0.7503]), "nearest").item() / 1000
        assert timestep in schedule.sigmas
        assert timestep == pytest.approx(0.75, abs=1e-3)


class TestEDM:
    def test_the_network_gets_a_quarter_of_log_sigma(self):
        """arXiv:2206.00364, table 1: c_noise, and back; below the smallest level that of the smallest."""
        schedule, sigma = EDMSchedule(), torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
        timesteps = schedule.sigma_to_timestep(sigma)
        torch.testing.assert_close(timesteps, sigma.log() / 4, rtol=ROUND_TRIP, atol=0)
        assert torch.equal(timesteps, schedule.sigma_to_timestep(sigma, "nearest"))
        torch.testing.assert_close(schedule.timestep_to_sigma(timesteps), sigma, rtol=ROUND_TRIP, atol=0)
        torch.testing.assert_close(schedule.grid_time_to_sigma(timesteps), sigma, rtol=ROUND_TRIP, atol=0)
        assert schedule.sigma_to_timestep(torch.tensor([0.0, 0.001])).tolist() == [timesteps[0].item()] * 2

    def test_its_table_is_even_in_log_sigma(self):
        schedule = EDMSchedule(sigma_min=0.01, sigma_max=100.0, steps=5)
        expected = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
        torch.testing.assert_close(schedule.sigmas, expected, rtol=ROUND_TRIP, atol=0)
        assert len(schedule) == 5

    def test_the_defaults_are_the_papers_for_images(self):
        assert EDMSchedule() == EDMSchedule(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, steps=1000)
        assert EDMSchedule(sigma_data=1.5).path == VarianceExploding(1.5)

    @pytest.mark.parametrize("sigma", [-0.1, 80.1, float("nan")])
    def test_other_levels_are_refused(self, sigma: float):
        with pytest.raises(InvalidInput, match="sigma is"):
            EDMSchedule().sigma_to_timestep(torch.tensor([1.0, sigma]))


def test_defaults_are_those_of_the_papers():
    """DDPM on pixels, Stable Diffusion, and a flow without shift, each of a thousand timesteps."""
    assert NoiseSchedule.linear() == NoiseSchedule(betas=LinearBetas(start=1e-4, end=0.02), steps=1000)
    scaled = ScaledLinearBetas(start=0.00085, end=0.012)
    assert NoiseSchedule.scaled_linear() == NoiseSchedule(betas=scaled, steps=1000, zero_terminal_snr=False)
    assert (LinearBetas(), ScaledLinearBetas()) == (LinearBetas(start=1e-4, end=0.02), scaled)
    assert NoiseSchedule.cosine() == NoiseSchedule(betas=CosineBetas(), steps=1000)
    assert FlowSchedule() == FlowSchedule(shift=1.0, steps=1000)


@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, FlowSchedule(), EDMSchedule()], ids=["sd", "flow", "edm"])
def test_the_largest_sigma_may_be_missed_by_rounding_and_by_no_more(schedule):
    """A level that went through float32, or through a power of 1/rho, is still the last trained one."""
    last = schedule.sigma_max
    for mode in ("interpolated", "nearest"):
        found = schedule.sigma_to_timestep(torch.tensor([last * (1 + 0.9e-4)], dtype=torch.float64), mode)
        expected = schedule.sigma_to_timestep(torch.tensor([last], dtype=torch.float64), mode)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        with pytest.raises(InvalidInput, match="sigma is"):
            schedule.sigma_to_timestep(torch.tensor([last * (1 + 1.1e-4)], dtype=torch.float64), mode)


def test_equal_schedules_are_equal():
    assert NoiseSchedule.linear() == NoiseSchedule(betas=LinearBetas())
    assert NoiseSchedule.linear() != NoiseSchedule.cosine()


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), 15.0])
@pytest.mark.parametrize("mode", ["interpolated", "nearest"])
def test_sigmas_that_were_never_trained_are_refused(sigma: float, mode: str):
    with pytest.raises(InvalidInput, match="sigma is"):
        STABLE_DIFFUSION.sigma_to_timestep(torch.tensor([1.0, sigma]), mode)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), 1.1])
def test_flow_sigmas_outside_0_to_1_are_refused(sigma: float):
    with pytest.raises(InvalidInput, match="sigma is"):
        FlowSchedule().sigma_to_timestep(torch.tensor([0.5, sigma]))


@pytest.mark.parametrize(
    ("schedule", "timestep"), [(STABLE_DIFFUSION, 999.5), (STABLE_DIFFUSION, -1), (FlowSchedule(), 1001)]
)
def test_timesteps_out_of_range_are_refused(schedule: NoiseSchedule | FlowSchedule, timestep: float):
    with pytest.raises(InvalidInput, match="timesteps is"):
        schedule.timestep_to_sigma(torch.tensor([timestep]))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: NoiseSchedule.linear(steps=1), "schedule.steps"),
        (lambda: NoiseSchedule.linear(beta_start=0.02, beta_end=0.01), "betas"),
        (lambda: NoiseSchedule(betas=ScaledLinearBetas(start=0.0)), "betas"),
        (lambda: NoiseSchedule(betas=LinearBetas(end=1.0)), "betas"),
        (lambda: NoiseSchedule(betas=LinearBetas(start=-0.1)), "betas"),
        (lambda: NoiseSchedule(betas=TabledBetas((0.0, 0.1)), steps=2), "betas.table"),
        (lambda: EDMSchedule(steps=1), "schedule.steps"),
        (lambda: EDMSchedule(sigma_min=0.0), "schedule.sigma_min"),
        (lambda: EDMSchedule(sigma_min=3.0, sigma_max=3.0), "schedule.sigma_min"),
        (lambda: EDMSchedule(sigma_max=float("inf")), "schedule.sigma_min"),
        (lambda: EDMSchedule(sigma_data=0.0), "schedule.sigma_data"),
        (lambda: EDMSchedule(sigma_data=float("inf")), "schedule.sigma_data"),
        (lambda: FlowSchedule(steps=1), "schedule.steps"),
        (lambda: FlowSchedule(shift=float("inf")), "schedule.shift"),
        (lambda: NoiseSchedule(betas=TabledBetas((0.1, 0.2))), "betas.table"),
        (lambda: NoiseSchedule(betas=TabledBetas((0.1, 1.0)), steps=2), "betas.table"),
        (lambda: FlowSchedule(shift=0), "schedule.shift"),
        (lambda: FlowSchedule(shift=float("nan")), "schedule.shift"),
        (lambda: FlowSchedule(steps=0), "schedule.steps"),
    ],
)
def test_impossible_schedules_are_refused_when_built(make, field: str):
    with pytest.raises(ConfigError) as refused:
        make()
    assert refused.value.field == field


def test_unknown_maps_are_refused():
    for schedule in (STABLE_DIFFUSION, FlowSchedule()):
        # With annotations checked, as here, the Literal refuses first; without, our own error does.
        with pytest.raises((InvalidInput, TypeCheckError), match="closest"):
            schedule.sigma_to_timestep(torch.tensor([0.5]), "closest")
