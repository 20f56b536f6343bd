"""What adapters do to a model's predictions, layer by layer, and what time they take: measured on demand."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from undertow.adapters.adapter import Adapter
from undertow.engine.forward import forward
from undertow.engine.rows import Row
from undertow.inspection.noisy_picture import NoisyPicture
from undertow.unet.unet import UNet

REPEATS = 7
"""Forwards of each kind that are timed."""

Saw = Callable[[str, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Impact:
    """How much adapters change: `‖with - without‖ / ‖without‖`, over all levels of noise. prediction: of the network.
    layers: by layer of `UNetConfig.layer_names()`, of its output."""

    names: tuple[str, ...]
    prediction: float
    layers: Mapping[str, float] = field(repr=False)

    def strongest(self, count: int) -> list[tuple[str, float]]:
        """The layers whose outputs change most, most first."""
        return sorted(self.layers.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Time of one evaluation, as a sampler asks for in every step, medians of interleaved runs; ControlNets are part
    of it. placing_s: what is done once for a request: text, pictures, and weights written or copied into slots."""

    without_s: float
    with_s: float
    placing_s: float

    @property
    def ratio(self) -> float:
        """Time with adapters over time without."""
        return self.with_s / self.without_s


@torch.inference_mode()
def measure_impact(probe: NoisyPicture, adapters: Sequence[Adapter]) -> Impact:
    """Of all these adapters together. Errors: those of `NoisyPicture.rows`."""
    unet = probe.model.require_unet()
    before: dict[str, Tensor] = {}
    changes: dict[str, float] = {}

    def compare(layer: str, output: Tensor) -> None:
        changes[layer] = _relative(output, before[layer])

    try:
        with _watching(unet, before.__setitem__):
            plain = _predict(probe, probe.rows(()))
        with _watching(unet, compare):
            adapted = _predict(probe, probe.rows(adapters))
    finally:
        probe.manager.unmerge()
    names = tuple(adapter.title for adapter in adapters)
    return Impact(names=names, prediction=_relative(adapted, plain), layers=changes)


@torch.inference_mode()
def measure_overhead(probe: NoisyPicture, adapters: Sequence[Adapter], repeats: int = REPEATS) -> Overhead:
    """Of all these adapters together, on this machine as busy as it is. Errors: those of `NoisyPicture.rows`."""
    device = probe.latents.device
    probe.rows(adapters)  # files are read
    start = _now(device)
    adapted = probe.rows(adapters)
    _prepare_weights(probe, adapted)
    placing = _now(device) - start
    plain = probe.rows(())
    times: dict[bool, list[float]] = {False: [], True: []}
    try:
        for turn in range(repeats + 1):
            for acts, rows in ((False, plain), (True, adapted)):
                _prepare_weights(probe, rows)
                start = _now(device)
                forward(rows, probe.manager)
                if turn > 0:  # the first warms up
                    times[acts].append(_now(device) - start)
    finally:
        probe.manager.unmerge()
    return Overhead(without_s=median(times[False]), with_s=median(times[True]), placing_s=placing)


def _predict(probe: NoisyPicture, rows: Sequence[Row]) -> Tensor:
    return torch.cat([outcome.prediction for outcome in forward(rows, probe.manager)])


def _prepare_weights(probe: NoisyPicture, rows: Sequence[Row]) -> None:
    """Puts weights where the rows want them, which is no part of an evaluation's time."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    probe.manager.prepare_weights(adapters)


def _relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _watching(unet: UNet, saw: Saw) -> Generator[None]:
    """Tells of the output of every layer of `layer_names()`."""

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            assert isinstance(output, Tensor)
            saw(name, output)

        return record

    handles = [unet.get_submodule(name).register_forward_hook(hook(name)) for name in unet.config.layer_names()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
