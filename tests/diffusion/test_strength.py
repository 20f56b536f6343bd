from functools import partial

import pytest

from undertow.diffusion import NoiseSchedule, sigma_grid, truncate
from undertow.diffusion.strength import strength_note
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


@pytest.mark.parametrize("convention", ["diffusers", "comfy", "a1111"])
@pytest.mark.parametrize("strength", [1e-3, 0.04, 0.0499])
def test_any_strength_above_0_takes_a_step(convention: str, strength: float):
    """0.04 of 20 steps is less than one: diffusers' pipelines refuse it, A1111's t_enc of 0 takes one."""
    steps = len(truncate(GRID_OF, 20, strength, convention)) - 1
    assert steps == (20 if convention == "comfy" else 1)


def test_small_strengths_are_told_by_their_convention():
    assert strength_note(20, 0.05, "diffusers") is None
    note = strength_note(20, 0.04, "diffusers")
    assert note is not None
    assert "0.04 is less than one of 20 steps as diffusers counts; one step is taken" in note
    assert strength_note(20, 0.04, "a1111") is None
    assert strength_note(20, 0.04, "comfy") is None
    nothing = strength_note(20, 0.0, "comfy")
    assert nothing is not None
    assert "takes no step" in nothing


def test_a_grid_too_long_for_any_memory_is_refused():
    asked: list[int] = []

    def grid_of(steps: int) -> list[float]:
        asked.append(steps)
        return GRID_OF(steps)

    with pytest.raises(InvalidInput, match=r"strength is 1e-09 of 20 steps, .* expected at most 100,000 steps"):
        truncate(grid_of, 20, 1e-9, "comfy")
    assert not asked
    assert len(truncate(grid_of, 20, 2e-4, "comfy")) == 21  # a grid of 100,000
