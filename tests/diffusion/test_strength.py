from functools import partial

import pytest

from undertow.diffusion import NoiseSchedule, sigma_grid, truncate
from undertow.errors import InvalidInput

GRID_OF = partial(sigma_grid, "karras", NoiseSchedule.scaled_linear())


def test_diffusers_skips_the_first_steps():
    assert truncate(GRID_OF, 20, 0.6, "diffusers") == GRID_OF(20)[8:]
    assert truncate(GRID_OF, 20, 0.99, "diffusers") == GRID_OF(20)[1:]  # int(19.8)


def test_comfyui_takes_the_end_of_a_longer_grid():
    assert truncate(GRID_OF, 20, 0.6, "comfy") == GRID_OF(33)[13:]
    assert len(truncate(GRID_OF, 20, 0.1, "comfy")) == 21


def test_a1111_counts_from_the_end_and_one_more():
    assert truncate(GRID_OF, 20, 0.6, "a1111") == GRID_OF(20)[7:]  # t_enc = 12: sigmas[20 - 12 - 1:]
    assert truncate(GRID_OF, 20, 0.05, "a1111") == GRID_OF(20)[18:]


@pytest.mark.parametrize("convention", ["diffusers", "comfy", "a1111"])
def test_the_ends_mean_everything_and_nothing(convention):
    assert truncate(GRID_OF, 20, 1.0, convention) == GRID_OF(20)
    assert truncate(GRID_OF, 20, 0.0, convention) == [0.0]


@pytest.mark.parametrize("convention", ["diffusers", "comfy", "a1111"])
def test_more_strength_starts_higher(convention):
    starts = [truncate(GRID_OF, 10, share / 20, convention)[0] for share in range(21)]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] == GRID_OF(10)[0]


@pytest.mark.parametrize("convention", ["diffusers", "comfy", "a1111"])
def test_a_grid_of_a_length_of_its_own_is_taken_whole(convention):
    """Sigmas that somebody wrote down do not follow the number of steps."""
    for asked in (5, 20):
        assert truncate(lambda steps: [9.0, 4.0, 1.0, 0.0], asked, 0.999, convention) == [9.0, 4.0, 1.0, 0.0]
    assert truncate(lambda steps: [9.0, 4.0, 1.0, 0.0], 3, 0.999, "diffusers") == [4.0, 1.0, 0.0]


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_impossible_strengths_are_refused(strength: float):
    with pytest.raises(InvalidInput, match="strength"):
        truncate(GRID_OF, 20, strength, "diffusers")


def test_unknown_conventions_are_refused():
    with pytest.raises(InvalidInput, match="'diffusers', 'comfy' or 'a1111'"):
        truncate(GRID_OF, 20, 0.5, "forge")
