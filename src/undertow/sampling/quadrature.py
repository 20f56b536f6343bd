"""Weights of multistep methods: integrals of Lagrange polynomials through the last evaluations."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

Values = np.ndarray[tuple[int], np.dtype[np.float64]]


def lagrange_weights(
    nodes: Sequence[float], start: float, end: float, factor: Callable[[Values], Values] = np.ones_like
) -> list[float]:
    """For each node the integral from `start` to `end` of its Lagrange polynomial times `factor`.

    By Gauss and Legendre with 32 points, exact to rounding for polynomials and for the exponentials met here.
    """
    points, weights = _legendre()
    at = (start + end) / 2 + (end - start) / 2 * points
    scaled = factor(at) * weights * (end - start) / 2
    return [float(np.sum(scaled * _lagrange(nodes, index, at))) for index in range(len(nodes))]


def _lagrange(nodes: Sequence[float], index: int, at: Values) -> Values:
    product = np.ones_like(at)
    for other, node in enumerate(nodes):
        if other != index:
            product *= (at - node) / (nodes[index] - node)
    return product


@cache
def _legendre() -> tuple[Values, Values]:
    return np.polynomial.legendre.leggauss(32)
