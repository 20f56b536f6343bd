"""The exponential moving average of a network's weights, which is what gets saved for inference."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from undertow.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)


class ExponentialMovingAverage(Generic[Network]):
    """Shadow weights s <- d s + (1 - d) w after every training step, in the weights' own type.

    The decay d warms up, d = min(decay, (1 + step) / (10 + step)), so that early weights are soon forgotten
    (TensorFlow's `ExponentialMovingAverage` with `num_updates`; diffusers' `EMAModel` does much the same). `network`:
    the averaged network, in evaluation mode.
    """

    def __init__(self, network: Network, decay: float):
        if not 0 <= decay < 1:
            raise ConfigError("ema_decay", decay, "must lie in [0, 1); 0 keeps the last weights")
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Take in the weights after training step `step`, the first of which is 1."""
        for shadow, weight in zip(self.network.parameters(), network.parameters(), strict=True):
            shadow.lerp_(weight, 1 - self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """d at this step."""
        return min(self.decay, (1 + step) / (10 + step))
