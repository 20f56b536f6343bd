"""The parts of a pass: what a mask keeps, how prompts become one estimate, on which step a sampler is."""

import math
from dataclasses import replace

import pytest
import torch

from undertow import HighResolution, InvalidInput, Region, Views
from undertow.engine.conditioning import Branches
from undertow.engine.layout import box_mask
from undertow.engine.passes import Composition, InpaintMask, Pass, slerp
from undertow.unet.conditioning import Conditioning

TEXT = Conditioning()
SINGLE = Branches(conditional=((TEXT, 1.0),), unconditional=None)


def cells(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


def test_a_mask_draws_white_keeps_black_and_mixes_gray():
    kept = InpaintMask(latents=cells(5, 6, 7), mask=cells(1, 0, 0.25))
    assert kept.over(cells(10, 20, 30), kept.latents).flatten().tolist() == [10, 6, 0.25 * 30 + 0.75 * 7]


def test_prompts_are_directions_from_the_unconditional_estimate():
    texts = replace(SINGLE, conditional=((TEXT, 2.0), (TEXT, -0.5)))
    found = Composition().compose(texts, [cells(3, 1), cells(5, 9)], cells(1, 1))
    assert found.flatten().tolist() == [1 + 2 * 2 - 0.5 * 4, 1 + 2 * 0 - 0.5 * 8]


def test_regions_take_their_part_and_share_what_they_have_in_common_by_weight():
    texts = replace(SINGLE, regions=(TEXT, TEXT))
    composition = Composition(masks=(cells(1, 1, 0, 0), 3 * cells(0, 1, 1, 0)))
    found = composition.compose(texts, [cells(9, 9, 9, 9), cells(1, 1, 1, 1), cells(5, 5, 5, 5)], None)
    assert found.flatten().tolist() == [1, (1 + 3 * 5) / 4, 5, 9]


def test_where_regions_cover_the_canvas_nobody_asks_for_the_prompt():
    composition = Composition(masks=(cells(1, 1, 0, 0), cells(0, 1, 1, 1)))
    assert composition.covered
    assert not Composition(masks=(cells(1, 1, 0, 0),)).covered
    assert not Composition().covered
    texts = replace(SINGLE, regions=(TEXT, TEXT))
    estimates = [cells(1, 1, 1, 1), cells(5, 5, 5, 5)]
    for left_out in (estimates, [cells(9, 9, 9, 9), *estimates]):
        assert composition.compose(texts, left_out, None).flatten().tolist() == [1, 3, 5, 5]


def test_a_region_of_small_weight_takes_its_part_too():
    composition = Composition(masks=(1e-3 * box_mask((0, 0, 0.5, 1), (1, 2)),))
    found = composition.compose(replace(SINGLE, regions=(TEXT,)), [cells(9, 9), cells(1, 1)], None)
    torch.testing.assert_close(found, cells(1, 9))


@pytest.mark.parametrize(
    ("sigma", "step"), [(20.0, 0), (10.0, 0), (7.0, 0), (5.0, 1), (4.9, 1), (2.0, 2), (1e-3, 2), (0.0, 2)]
)
def test_a_sampler_is_in_the_step_whose_level_it_has_reached(sigma: float, step: int):
    """Also between two levels, above the first (churn) and below the last step's."""
    one = object.__new__(Pass)
    one.sigmas = [10.0, 5.0, 2.0, 0.0]
    assert one.step_at(sigma) == step


def test_slerp_goes_along_the_circle_also_to_nearly_the_opposite():
    def at(degrees: float) -> torch.Tensor:
        return cells(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))

    for end in (40, 120, 170):
        torch.testing.assert_close(slerp(at(0), at(end), 0.25), at(end / 4))


def test_slerp_is_straight_where_the_angle_is_lost_to_rounding():
    one = cells(1, 2)
    torch.testing.assert_close(slerp(one, 3 * one, 0.5), 2 * one)
    torch.testing.assert_close(slerp(one, -3 * one, 0.25), 0 * one)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: Views(overlap=1.0), "from 0 to below 1"),
        (lambda: Views(overlap=-0.1), "from 0 to below 1"),
        (lambda: Views(window=0), "at least 1"),
        (lambda: HighResolution(scale=1.0), "above 1"),
        (lambda: HighResolution(scale=math.inf), "above 1"),
        (lambda: HighResolution(steps=0), "at least 1"),
        (lambda: HighResolution(strength=1.1), "from 0"),
        (lambda: Region(prompt="a", box=(0, 0, 1, 1), weight=0.0), "a finite number above 0"),
        (lambda: Region(prompt="a", box=(0, 0, 1, 1), weight=math.nan), "a finite number above 0"),
        (lambda: Region(prompt="a", box=(0, 0.5, 1, 0.5)), "left < right"),
    ],
)
def test_impossible_parts_are_refused(part, message: str):
    with pytest.raises(InvalidInput, match=message):
        part()
