import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from undertow.errors import InvalidInput
from undertow.pictures.pixels import from_uint8, to_uint8
from undertow.training.data import Digits
from undertow.training.pictures import find_class


def test_the_split_is_stratified_complete_and_disjoint():
    train, test = Digits(size=8).open(), Digits(size=8).open("test")
    assert (len(train), len(test)) == (1442, 355)
    _, targets = sklearn_digits(return_X_y=True)
    for label in range(10):
        members = int((targets == label).sum())
        assert int((test.labels == label).sum()) == members // 5
        assert int((train.labels == label).sum()) == members - members // 5


def test_pixels_are_scikit_learn_s_counts():
    test = Digits(size=8).open("test")
    images, targets = sklearn_digits(return_X_y=True)
    first_test_nine = images[targets == 9][4].reshape(8, 8)
    expected = torch.from_numpy(first_test_nine / 16 * 255).round().to(torch.uint8)
    assert test.pixels[test.labels == 9][0, 0].equal(expected)


@pytest.mark.parametrize("size", [16, 32])
def test_upsampled_digits_average_to_the_originals(size):
    small, large = Digits(size=8).open("test").pixels, Digits(size=size).open("test").pixels
    assert large.shape == (355, 1, size, size)
    means = torch.nn.functional.avg_pool2d(large.float(), size // 8)
    # Bicubic weights are no box and are clamped at black and white, so single cells differ, by a tenth at the mean.
    assert (means - small.float()).abs().mean() < 25


def test_other_sizes_are_refused():
    with pytest.raises(InvalidInput, match="8, 16 or 32"):
        Digits(size=20).open()


def test_bytes_and_numbers_are_each_other_s_inverse():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert from_uint8(pixels).min() == -1
    assert from_uint8(pixels).max() == 1
    assert to_uint8(from_uint8(pixels)).equal(pixels)
    assert to_uint8(torch.tensor([-3.0, 5.0])).tolist() == [0, 255]


def test_classes_are_found_by_number_or_name():
    names = ("airplane", "automobile", "7")
    assert find_class("automobile", names) == 1
    assert find_class("0", names) == 0
    assert find_class("7", names) == 2  # a name goes before a number
    with pytest.raises(InvalidInput, match="a number from 0 to 2 or a name"):
        find_class("3", names)
