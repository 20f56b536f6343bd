"""The optimizer that trains, written out from its paper in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-8


class AdamW:
    """AdamW (arXiv:1711.05101, algorithm 2) on clipped gradients, where matrices alone decay.

    parameters, average: in float64, after the last step. norms: of the gradients, before clipping.
    """

    def __init__(self, start: Sequence[Tensor], *, betas: tuple[float, float], weight_decay: float, clip_norm: float):
        self.parameters = [tensor.detach().double().clone() for tensor in start]
        self.average = [tensor.clone() for tensor in self.parameters]
        self.first = [torch.zeros_like(tensor) for tensor in self.parameters]
        self.second = [torch.zeros_like(tensor) for tensor in self.parameters]
        self.betas, self.weight_decay, self.clip_norm = betas, weight_decay, clip_norm
        self.norms: list[float] = []

    def step(self, gradients: Sequence[Tensor], *, rate: float, ema_decay: float) -> None:
        """The next one; the average's decay warms up from 2 / 11."""
        (beta, gamma), done = self.betas, len(self.norms) + 1
        self.norms.append(float(torch.cat([gradient.double().flatten() for gradient in gradients]).norm()))
        kept = min(1.0, self.clip_norm / (self.norms[-1] + 1e-6))
        average_decay = min(ema_decay, (1 + done) / (10 + done))
        for index, gradient in enumerate(gradients):
            clipped = kept * gradient.double()
            self.first[index] = beta * self.first[index] + (1 - beta) * clipped
            self.second[index] = gamma * self.second[index] + (1 - gamma) * clipped**2
            moved = self.first[index] / (1 - beta**done)
            moved = moved / ((self.second[index] / (1 - gamma**done)).sqrt() + EPSILON)
            decay = self.weight_decay if gradient.ndim > 1 else 0.0
            self.parameters[index] = self.parameters[index] - rate * (moved + decay * self.parameters[index])
            self.average[index] = average_decay * self.average[index] + (1 - average_decay) * self.parameters[index]
