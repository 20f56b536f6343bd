"""The functions of exponential integrators, with h a step in -log sigma (arXiv:2005.03113; arXiv:2211.01095)."""

import math


def decay(h: float) -> float:
    """1 - e^-h: the share of the new estimate after a step of h. h may be infinite."""
    return -math.expm1(-h)


def phi_2(h: float) -> float:
    """(e^-h - 1) / h + 1, the weight of the estimate's slope times h."""
    return math.expm1(-h) / h + 1


def phi_3(h: float) -> float:
    """phi_2(h) / h - 1/2, minus the weight of its curvature times h^2."""
    return phi_2(h) / h - 0.5


def step_length(sigma: float, target: float) -> float:
    """h = log(sigma / target), infinite for a step to 0."""
    return math.log(sigma / target) if target > 0 else math.inf
