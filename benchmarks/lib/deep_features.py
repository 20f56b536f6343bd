"""Deep features of one step used again at the next (DeepCache, arXiv:2312.00858), through the U-Net's own stages.

For one picture at a time: a forward does not say which picture its rows belong to, and what is kept is of the last one.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from undertow import UNet
from undertow.shapes import Latents, Timesteps
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.runner import EAGER
from undertow.unet.unet import UNetOutput


class DeepFeatureRunner:
    """Computes whole networks at some steps, and at the others the first level alone, which then takes what came up
    from below at the last whole step.

    whole: for each step of a picture.
    """

    capabilities = EAGER.capabilities

    def __init__(self, whole: Sequence[bool]):
        self.whole = whole
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        """Of each forward, by whether it was whole."""
        self._step = 0
        self._deep: Tensor | None = None

    @property
    def share(self) -> float:
        """The mean forward's cost, by the medians of the two kinds, in that of a whole one."""
        whole, first = (statistics.median(self._seconds[kind]) for kind in (True, False))
        return sum(first / whole if not kind else 1.0 for kind in self.whole) / len(self.whole)

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        return network(*inputs, compute=self._predict)

    def _predict(
        self,
        network: UNet,
        latents: Latents,
        timesteps: Timesteps,
        conditioning: Conditioning,
        ports: Ports,
        observed: tuple[str, ...] = (),
    ) -> UNetOutput:
        assert not observed
        assert replace(ports, text=None) == Ports()
        whole = self.whole[self._step % len(self.whole)]
        self._step += 1
        begun = time.perf_counter()
        inputs = network.stage_inputs(timesteps, conditioning, ports)
        if whole:
            hidden, skips = network.encode(latents, inputs)
            hidden = network.bridge(hidden, inputs)
            for block in list(network.up_blocks)[:-1]:
                hidden = block(hidden, skips, inputs)
            self._deep = hidden
        else:
            assert self._deep is not None  # the first step is whole
            first = network.down_blocks[0]
            hidden = network.conv_in(latents)
            skips = [hidden]
            for index in range(len(first.resnets)):
                hidden = first.layer(index, hidden, inputs)
                skips.append(hidden)
        hidden = network.up_blocks[-1](self._deep, skips, inputs)
        prediction = network.conv_out(F.silu(network.conv_norm_out(hidden)))
        self._seconds[whole].append(time.perf_counter() - begun)
        return UNetOutput(prediction=prediction, observations={})
