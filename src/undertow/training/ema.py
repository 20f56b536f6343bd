"""The exponential moving average of a network's weights, which is what gets saved for inference."""

import copy

import torch

from undertow.errors import ConfigError
from undertow.unet.unet import UNet


class ExponentialAverage:
    """Shadow weights s <- d s + (1 - d) w after every training step, in the weights' own type.

    The decay d warms up, d = min(decay, (1 + step) / (10 + step)), so that early weights are soon forgotten
    (TensorFlow's `ExponentialMovingAverage` with `num_updates`; diffusers' `EMAModel` does much the same). `unet`: the
    averaged network, in evaluation mode.
    """

    def __init__(self, unet: UNet, decay: float):
        if not 0 <= decay < 1:
            raise ConfigError("ema_decay", decay, "must lie in [0, 1); 0 keeps the last weights")
        self.decay = decay
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)
        self.unet.gradient_checkpointing = False

    @torch.no_grad()
    def update(self, unet: UNet, step: int) -> None:
        """Take in the weights after training step `step`, the first of which is 1."""
        for shadow, weight in zip(self.unet.parameters(), unet.parameters(), strict=True):
            shadow.lerp_(weight, 1 - self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """d at this step."""
        return min(self.decay, (1 + step) / (10 + step))
