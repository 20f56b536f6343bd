import math

import pytest
import torch

from undertow.errors import ConfigError
from undertow.training.augmentation import Augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def blob():
    """A bright disk off the middle, on black."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    disk = torch.exp(-((x - 20) ** 2 + (y - 12) ** 2) / 8) * 2 - 1
    return disk.expand(64, 1, 32, 32).clone()


def centers(pictures):
    """(x, y) of each picture's mass, in pixels from the middle."""
    weight = (pictures[:, 0] + 1).clamp(min=0)
    weight = weight / weight.sum((1, 2), keepdim=True)
    axis = torch.arange(32.0) - 15.5
    return torch.stack(((weight * axis).sum((1, 2)), (weight * axis[:, None]).sum((1, 2))), dim=1)


def test_nothing_asked_for_changes_nothing(blob):
    assert Augmentation()(blob, generator()).equal(blob)


def test_the_same_generator_gives_the_same_pictures_and_each_picture_its_own(blob):
    distort = Augmentation(shift=0.1, rotation=20, scale=0.1, shear=0.1, background=-1.0)
    first = distort(blob, generator())
    assert first.equal(distort(blob, generator()))
    assert not first.equal(distort(blob, generator(1)))
    assert len(centers(first).unique(dim=0)) == len(blob)


def test_shifts_stay_within_their_fraction_and_use_it(blob):
    moved = centers(Augmentation(shift=0.1, background=-1.0)(blob, generator())) - centers(blob)
    assert moved.abs().max() <= 3.2 + 0.05  # a tenth of 32 pixels
    assert moved.abs().amax(0).min() > 2.5


def test_rotations_keep_the_distance_from_the_middle(blob):
    turned = centers(Augmentation(rotation=30, background=-1.0)(blob, generator()))
    start = centers(blob)[0]
    torch.testing.assert_close(turned.norm(dim=1), start.norm().expand(64), rtol=0.01, atol=0.02)
    angles = torch.atan2(turned[:, 1], turned[:, 0]) - torch.atan2(start[1], start[0])
    assert angles.abs().max() <= math.radians(30) + 0.01
    assert angles.max() > math.radians(20)
    assert angles.min() < -math.radians(20)


def test_scales_move_along_the_line_from_the_middle_by_their_fraction(blob):
    moved = centers(Augmentation(scale=0.25, background=-1.0)(blob, generator()))
    start = centers(blob)[0]
    factors = moved.norm(dim=1) / start.norm()
    torch.testing.assert_close(moved, factors[:, None] * start, rtol=0.01, atol=0.02)
    assert 1 / 1.25 - 0.01 <= factors.min() < 0.85  # the map from output to input has factors from 0.75 to 1.25
    assert 1.25 < factors.max() <= 1 / 0.75 + 0.01


def test_shears_move_along_rows_in_proportion_to_the_height(blob):
    moved = centers(Augmentation(shear=0.5, background=-1.0)(blob, generator())) - centers(blob)
    assert moved[:, 1].abs().max() < 0.05
    height = float(centers(blob)[0, 1].abs())
    assert moved[:, 0].abs().max() <= 0.5 * height + 0.05
    assert moved[:, 0].max() > 0.4 * height
    assert moved[:, 0].min() < -0.4 * height


def test_flips_mirror_about_half_of_the_pictures(blob):
    flipped = Augmentation(flip=True)(blob, generator())
    mirrored = (flipped == blob.flip(-1)).flatten(1).all(1)
    kept = (flipped == blob).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 16 < mirrored.sum() < 48


def test_the_background_comes_in_at_the_edges():
    white = torch.ones(8, 1, 16, 16)
    moved = Augmentation(shift=0.3, background=-1.0)(white, generator())
    assert moved.min() == -1
    reflected = Augmentation(shift=0.3)(white, generator())
    torch.testing.assert_close(reflected, white)


@pytest.mark.parametrize(("name", "limit"), [("shift", 0.5), ("rotation", 180.0), ("scale", 0.5), ("shear", 0.5)])
def test_impossible_distortions_are_refused(name, limit):
    Augmentation(**{name: limit})
    for value in (limit + 0.1, -0.1):
        with pytest.raises(ConfigError, match=rf"augmentation\.{name} = {value}: must lie between 0 and {limit:g}"):
            Augmentation(**{name: value})
