"""Measures the backends with a model's own U-Net: is it right, and how long does it take."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from statistics import median

import torch
from torch import Tensor

from undertow.extras import is_installed
from undertow.nn.packed import packs_anything
from undertow.unet.backend_measurements import BackendTiming, Forward, MeasuredForward
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels, TextTime
from undertow.unet.openvino import HINTS
from undertow.unet.runner import runner_named
from undertow.unet.unet import UNet

GATE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest relative error of a prediction, by type: roundings of hundreds of layers. A backend beyond it does not
count."""


@torch.inference_mode()
def measure_backends(
    unet: UNet,
    forward: Forward,
    backends: Sequence[str] = ("eager", "packed", "openvino"),
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> MeasuredForward:
    """Times a forward of random numbers by each backend, in turns. backends: from "eager" on, with which the others are
    compared."""
    inputs = _inputs(unet, forward)
    runs: dict[str, Callable[[], Tensor]] = {}
    first: dict[str, float] = {}
    outputs: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    for name in backends:
        if why := _cannot(name, unet):
            refused[name] = why
            continue
        try:
            run = partial(runner_named(name).run, unet, *inputs)
            outputs[name], first[name] = _timed(run, clock)
        except Exception as error:
            refused[name] = f"it failed: {(str(error).splitlines() or [type(error).__name__])[0][:160]}"
            continue
        if (error := _error(outputs[name], outputs["eager"])) <= GATE[unet.dtype]:
            runs[name] = run
        else:
            refused[name] = f"it is wrong: relative error {error:.1g}"
    taken = [{name: _timed(run, clock)[1] for name, run in runs.items()} for _ in range(repeats)]
    timings = {
        name: BackendTiming(
            seconds=median(turn[name] for turn in taken),
            first_seconds=first[name],
            error=_error(outputs[name], outputs["eager"]),
        )
        for name in runs
    }
    date = datetime.now(UTC).date().isoformat()
    return MeasuredForward(forward=forward, timings=timings, refused=refused, date=date)


def _timed(run: Callable[[], Tensor], clock: Callable[[], float]) -> tuple[Tensor, float]:
    """What a call returns, and its seconds."""
    started = clock()
    output = run()
    if output.device.type == "cuda":
        torch.cuda.synchronize(output.device)
    return output, clock() - started


def _cannot(backend: str, unet: UNet) -> str:
    """Why a backend cannot run a network here; empty where it can."""
    if backend == "packed":
        return "" if packs_anything(unet) else "nothing is packed for this type on this device"
    if backend != "openvino":
        return ""
    if not is_installed("openvino"):
        return "it is not installed: pip install 'undertow[openvino]'"
    if unet.device.type != "cpu":
        return "it runs on a CPU only"
    return "" if unet.dtype in HINTS else f"it does not compute in {str(unet.dtype).removeprefix('torch.')}"


def _inputs(unet: UNet, forward: Forward) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    config, rows = unet.config, forward.rows
    latents = normal(rows, config.in_channels, forward.height, forward.width)
    given = {"context": None if config.context_dim is None else normal(rows, forward.tokens, config.context_dim)}
    match config.added:
        case TextTime(pooled_dim=pooled, ids=ids):
            given |= {"pooled": normal(rows, pooled), "time_ids": 512 * normal(rows, ids).abs()}
        case ClassLabels():
            given |= {"class_labels": torch.zeros(rows, dtype=torch.long, device=unet.device)}
        case None:
            pass
    if config.guidance_dim is not None:
        given |= {"guidance": torch.full((rows,), 5.0, device=unet.device)}
    return latents, torch.linspace(900, 100, rows, device=unet.device), Conditioning(**given)


def _error(output: Tensor, expected: Tensor) -> float:
    """Relative to the whole of the prediction; infinite where it is not finite."""
    error = ((output.double() - expected.double()).norm() / expected.double().norm()).item()
    return math.inf if math.isnan(error) else error
