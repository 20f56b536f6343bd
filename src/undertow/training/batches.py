"""The batch of each training step, a pure function of (pictures, config, step)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from undertow.pictures.pixels import from_uint8
from undertow.training.config import TrainingConfig
from undertow.training.objective import drop_labels
from undertow.training.pictures import Pictures
from undertow.training.randomness import generator_for, permuted
from undertow.unet.config import ClassLabels


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clean pictures in [-1, 1], their labels with some dropped, noise, and places on the path."""

    x0: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, "batch"] | None
    noise: Float[Tensor, "batch channels height width"]
    u: Float64[Tensor, "batch"]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Every step's batch. rank, count: each of `count` devices takes every count-th row, so that together they train on
    the same numbers as one device would."""

    pictures: Pictures
    config: TrainingConfig
    rank: int = 0
    count: int = 1

    def at(self, step: int) -> Batch:
        """The batch of step 1, 2, ..., on the CPU."""
        config, size = self.config, self.config.batch_size
        generator = generator_for(config.seed, "batch", step)
        chosen = indices_at(step, size, len(self.pictures), config.seed)
        x0 = config.augmentation(from_uint8(self.pictures.pixels[chosen]), generator)
        labels = None
        match config.unet.added:
            case ClassLabels(count=classes):
                labels = drop_labels(self.pictures.labels[chosen], config.label_dropout, classes, generator)
            case _:
                pass
        noise = torch.randn(x0.shape, generator=generator)
        u = config.objective.build().timesteps.draw(size, generator)
        mine = slice(self.rank, None, self.count)
        return Batch(x0=x0[mine], labels=None if labels is None else labels[mine], noise=noise[mine], u=u[mine])


def indices_at(step: int, batch_size: int, count: int, seed: int) -> Int[Tensor, "batch"]:
    """Which pictures step 1, 2, ... sees: the next `batch_size` of an endless row of shuffled epochs."""
    positions = torch.arange((step - 1) * batch_size, step * batch_size)
    epochs = positions // count
    orders = torch.stack([_order(count, seed, epoch) for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)])
    return orders[epochs - epochs[0], positions % count]


_order = lru_cache(maxsize=4)(permuted)
