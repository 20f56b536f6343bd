"""Perturbed self-attention: the identity (PAG, arXiv:2403.17377) and blurred queries (SEG, arXiv:2408.00760)."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from undertow.nn.perturbation import INFINITE_BLUR, blur_queries, keep_own_values

TOLERANCE = 1e-5
"""float32 against float64: two products of at most a dozen cells."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blurred_by_hand(query: Tensor, sigma: float, height: int) -> Tensor:
    """The authors' kernel of odd length about 6 sigma, never longer than the map, on the map reflected at its edges."""
    cells = query.double().unflatten(0, (height, -1)).numpy()
    for axis, size in enumerate(cells.shape[:2]):
        reach = min((math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2) // 2, size // 2)
        weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        cells = correlate1d(cells, weights / weights.sum(), axis=axis, mode="mirror")
    return torch.from_numpy(cells).flatten(0, 1)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (2, 9), (1, 7), (6, 1)])
def test_each_row_is_blurred_by_a_gaussian_of_its_own(size):
    sigmas = (0.3, 0.5, 1.0, 2.5, 40.0)
    query = normal(len(sigmas), size[0] * size[1], 6)
    found = blur_queries(query, torch.tensor(sigmas), size[0])
    for row, sigma in enumerate(sigmas):
        expected = blurred_by_hand(query[row], sigma, size[0])
        torch.testing.assert_close(found[row].double(), expected, rtol=0, atol=TOLERANCE)


def test_beyond_the_largest_blur_it_is_the_mean_and_zero_is_none():
    query = normal(4, 4 * 6, 5)
    found = blur_queries(query, torch.tensor([0.0, math.inf, INFINITE_BLUR + 1, INFINITE_BLUR]), 4)
    assert torch.equal(found[0], query[0])
    for row in (1, 2):
        torch.testing.assert_close(found[row], query[row].mean(0).expand(24, -1), rtol=0, atol=TOLERANCE)
    expected = blurred_by_hand(query[3], INFINITE_BLUR, 4)
    torch.testing.assert_close(found[3].double(), expected, rtol=0, atol=TOLERANCE)
    assert (expected - query[3].mean(0)).abs().max() > 0.1, "reflected weights are no mean"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_blurred_in_float32(dtype):
    query = normal(2, 24, 5).to(dtype)
    sigma = torch.tensor([1.0, 0.0])
    found = blur_queries(query, sigma, 4)
    assert found.dtype == dtype
    assert torch.equal(found, blur_queries(query.float(), sigma, 4).to(dtype))


def test_with_the_identity_each_cell_keeps_its_value():
    output, value = normal(3, 2, 6, 4, seed=1), normal(3, 2, 6, 4, seed=2)
    found = keep_own_values(output, value, torch.tensor([True, False, True]))
    assert torch.equal(found, torch.stack([value[0], output[1], value[2]]))
