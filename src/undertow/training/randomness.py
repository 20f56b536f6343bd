"""Every random number of a training run as a pure function of (seed, what it is for, step): nothing to save, nothing to
restore, and a resumed run draws exactly what the uninterrupted one would have drawn."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch


def seed_for(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that no other (seed, purpose, indices) shares, by hashing them."""
    key = repr((seed, purpose, indices)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator with that seed."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, *indices))


@contextmanager
def seeded(seed: int, purpose: str) -> Generator[None]:
    """Inside, PyTorch's own random numbers of the CPU are those of that seed, such as of new weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, purpose))
        yield


def permuted(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order in which epoch `epoch` visits `count` pictures."""
    return torch.randperm(count, generator=generator_for(seed, "order", epoch))
