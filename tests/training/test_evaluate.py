import pytest
import torch

from undertow.errors import InvalidInput
from undertow.training.data import Digits
from undertow.training.evaluate import evaluate_samples, nearest_within
from undertow.training.pictures import Pictures


@pytest.fixture(scope="module")
def digits():
    return Digits(size=8).open(), Digits(size=8).open("test")


def measure(pixels, labels, digits):
    return evaluate_samples(pixels, labels, training=digits[0], test=digits[1])


def test_nearest_neighbors_are_others():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    assert nearest_within(rows).tolist() == [5.0, 1.0, 1.0]


def test_real_test_pictures_are_right_diverse_and_no_copies(digits):
    _, test = digits
    found = measure(test.pixels, test.labels, digits)
    assert found.accuracy == found.test_accuracy > 0.96
    assert found.copies == found.test_copies < 0.03
    # As many pictures of each set: 33 to 36 a class; a test picture is as far from others as a training picture.
    assert found.diversity == pytest.approx(1, abs=0.15)


def test_training_pictures_are_copies(digits):
    train, _ = digits
    found = measure(train.pixels, train.labels, digits)
    assert found.copies == 1
    assert found.diversity == 1


def test_one_picture_over_and_over_is_not_diverse(digits):
    test = digits[1]
    first = torch.stack([test.pixels[test.labels == label][0] for label in range(10)])
    labels = torch.arange(10).repeat(20)
    found = measure(first.repeat(20, 1, 1, 1), labels, digits)
    assert found.diversity < 0.01
    assert found.accuracy > 0.8


def test_wrong_labels_and_noise_are_not_accurate(digits):
    test = digits[1]
    assert measure(test.pixels, (test.labels + 1) % 10, digits).accuracy < 0.05
    noise = torch.randint(0, 256, test.pixels.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert measure(noise, test.labels, digits).accuracy < 0.3


def test_the_copy_distance_is_the_first_percentile_of_real_neighbors(digits):
    train, test = digits
    distances = nearest_within(train.pixels.float().flatten(1) / 127.5)
    found = measure(test.pixels, test.labels, digits)
    assert (distances < found.copy_distance).double().mean().item() == pytest.approx(0.01, abs=0.002)


def test_a_class_with_one_sample_is_refused(digits):
    test = digits[1]
    few = Pictures(pixels=test.pixels[:1], labels=test.labels[:1], class_names=test.class_names)
    with pytest.raises(InvalidInput, match="at least two samples"):
        measure(few.pixels, few.labels, digits)
