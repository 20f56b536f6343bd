"""Tolerances and comparisons of the golden tests."""

import pytest
import torch
from torch import Tensor

from tests.services import services_are_left_as_found as services_are_left_as_found

T0 = 1e-5
"""Largest difference in float32, relative to the largest reference value (at least 1): the same operations in another
order differ by 4e-6 at most on these networks."""

EFFECT = 0.1
"""A feature under test must change the output by this much of its norm, or the comparison shows nothing."""


def largest_difference(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / max(1.0, float(reference.abs().max())))


def change(with_feature: Tensor, without: Tensor) -> float:
    """Relative size of a feature's effect."""
    return float(torch.linalg.vector_norm(with_feature - without) / torch.linalg.vector_norm(without))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield
