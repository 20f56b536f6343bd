"""One forward of a mini, watched: what every module received and gave, in the order of execution."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tests.golden.minis import MINIS, TIMESTEPS, conditioning_for, latents_for, pair

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One module that ran: its name, and the shapes of its first input and of all that it returned."""

    name: str
    received: Shape
    gave: tuple[Shape, ...]


@cache
def watched(mini: str, height: int = 8, width: int = 8) -> tuple[Ran, ...]:
    """Shared between tests, as the network is."""
    unet, ran = pair(mini)[0], []

    def watch(name: str):
        def hook(_module: object, inputs: tuple[object, ...], output: object) -> None:
            received = next((tuple(x.shape) for x in inputs if isinstance(x, Tensor)), ())
            ran.append(Ran(name=name, received=received, gave=tuple(_shapes(output))))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in unet.named_modules()]
    with torch.no_grad():
        unet(latents_for(MINIS[mini], height, width), TIMESTEPS, conditioning_for(MINIS[mini]))
    for handle in handles:
        handle.remove()
    return tuple(ran)


def _shapes(output: object) -> Iterator[Shape]:
    if isinstance(output, Tensor):
        yield tuple(output.shape)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _shapes(part)
