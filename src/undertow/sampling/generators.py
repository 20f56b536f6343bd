"""A stream of random numbers for every seed of 64 bits."""

import numpy as np
import torch

LOW_BITS = 32
HEADER_BYTES = 24
"""Of PyTorch's state of a CPU generator: seed, and where in its words it is; 624 words of 64 bits follow."""


def generator_for(seed: int) -> torch.Generator:
    """A CPU generator for a seed from 0 to 2^64 - 1. Below 2^32 it is `torch.manual_seed`'s.

    PyTorch's Mersenne Twister reads the lower 32 bits of a seed alone, so that n and n + 2^32 would draw the same.
    Above, its words are filled from both halves, as the algorithm's authors fill them from several words (Matsumoto
    and Nishimura, 2002, `init_by_array`; NumPy's `RandomState([low, high])`).
    """
    generator = torch.Generator().manual_seed(seed)
    if seed >> LOW_BITS == 0:
        return generator
    halves = [seed & (2**LOW_BITS - 1), seed >> LOW_BITS]
    words = np.random.RandomState(halves).get_state(legacy=False)["state"]["key"]
    state = generator.get_state()
    filled = np.asarray(words, dtype=np.uint64)
    state[HEADER_BYTES : HEADER_BYTES + filled.nbytes] = torch.from_numpy(filled.view(np.uint8))
    generator.set_state(state)
    return generator
