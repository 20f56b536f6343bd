"""Averages the loss and the gradient norm between two records of the log, and measures the time of training."""

import math
import time
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from undertow.errors import UndertowError
from undertow.training.devices import Devices
from undertow.training.log import StepRecord


class Meter:
    """Accumulates loss and gradient norm on the device, so that not every step has to synchronize with it.

    batch_size: examples per step over all devices.
    """

    def __init__(self, *, batch_size: int, devices: Devices):
        self.batch_size, self.devices = batch_size, devices
        self.since = self.started = time.perf_counter()
        self.sums, self.count = torch.zeros(2), 0

    def go_on_from(self, seconds: float) -> None:
        """Starts the clock at the time trained in earlier sessions of the run."""
        self.since = time.perf_counter()
        self.started = self.since - seconds

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Adds the figures of one step."""
        self.sums, self.count = self.sums.to(loss.device) + torch.stack([loss, norm]), self.count + 1

    def record(self, step: int, learning_rate: float) -> StepRecord:
        """Returns the record of the steps since the last one. Errors: `UndertowError` when they are not finite."""
        loss, norm = self.devices.mean(self.sums / self.count).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UndertowError(
                f"at step {step} the loss is {loss} and the gradient's norm {norm}: training has diverged; "
                f"lower the learning rate (now {learning_rate:g}) or clip_norm, or use float32"
            )
        now = time.perf_counter()
        images_per_second = self.count * self.batch_size / (now - self.since)
        self.since, self.sums, self.count = now, torch.zeros(2), 0
        return StepRecord(
            step=step,
            loss=loss,
            gradient_norm=norm,
            learning_rate=learning_rate,
            images_per_second=images_per_second,
            seconds=self.seconds(),
        )

    def seconds(self) -> float:
        """Returns the time trained so far, over all sessions of the run."""
        return time.perf_counter() - self.started

    @contextmanager
    def paused(self) -> Generator[None]:
        """A context whose time counts as training time, but not towards the images per second."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun
