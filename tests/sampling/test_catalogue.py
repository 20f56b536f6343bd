import pytest
import torch

from undertow.diffusion import RectifiedFlow, VariancePreserving
from undertow.errors import InvalidInput
from undertow.sampling import SAMPLERS, NoiseSource, drive, euler, find_sampler, start_sampler

X = torch.ones(1, 3)
SIGMAS = [0.9, 0.4, 0.0]


def test_every_sampler_starts_by_name_on_each_of_its_paths():
    for name, entry in SAMPLERS.items():
        for path in entry.paths:
            sampler = start_sampler(name, X, SIGMAS, path=path(), noise=NoiseSource([1]))
            assert drive(sampler, lambda x, sigma: x / 2).isfinite().all()


def test_options_reach_the_algorithm():
    still = start_sampler("euler_a", X, SIGMAS, path=VariancePreserving(), noise=NoiseSource([1]), eta=0.0)
    expected = drive(euler(X, SIGMAS), lambda x, sigma: x / 2)
    assert torch.equal(drive(still, lambda x, sigma: x / 2), expected)


def test_stochastic_says_whether_noise_is_needed():
    for name, entry in SAMPLERS.items():
        try:
            entry.function(X, SIGMAS)
        except InvalidInput:
            assert entry.stochastic, name
        else:
            assert not entry.stochastic, name


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("eular", "'euler'"), ("dpm++_2m", "'dpmpp_2m'"), ("Heun", "'heun'"), ("DDIM", "'ddim'")]
)
def test_unknown_names_are_refused_with_the_nearest(wrong: str, nearest: str):
    with pytest.raises(InvalidInput, match="did you mean") as refused:
        find_sampler(wrong)
    assert nearest in refused.value.remedy


def test_a_name_like_no_other_lists_the_catalogue():
    with pytest.raises(InvalidInput) as refused:
        find_sampler("zzz")
    assert refused.value.remedy == ""
    assert refused.value.expected == f"one of {', '.join(SAMPLERS)}"


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler_a"])
def test_samplers_of_the_other_path_are_refused(name: str):
    with pytest.raises(InvalidInput, match="one for RectifiedFlow; take euler, heun, dpmpp_2m, flow_euler, flow_heun"):
        start_sampler(name, X, SIGMAS, path=RectifiedFlow(), noise=NoiseSource([1]))


def test_flow_names_are_refused_off_the_flow_path():
    with pytest.raises(InvalidInput, match="one for VariancePreserving"):
        find_sampler("flow_heun", VariancePreserving())
