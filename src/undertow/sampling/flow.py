"""Samplers made for x = x0 + sigma noise, on the flow path."""

from collections.abc import Sequence

from torch import Tensor

from undertow.diffusion.guidance import Guided
from undertow.diffusion.paths import VariancePreserving, working
from undertow.diffusion.schedules import FlowSchedule, Schedule
from undertow.errors import InvalidInput
from undertow.sampling.entry import SamplerFunction
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import ModelCall, Sampler

LAST_SHARE = 0.9999
"""Of the model's timesteps: its level stands for 1, where there is no data in x and no ratio of the two (ComfyUI
`offset_first_sigma_for_snr`)."""


def along_flow(
    function: SamplerFunction,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    schedule: Schedule | None = None,
    **options: float,
) -> Sampler:
    """`function` in the variables x / (1 - sigma) and sigma / (1 - sigma): they lie on the path it was made for.

    So fresh noise has the right size, and log sigma is the half log signal-to-noise ratio that the papers mean. Options
    that are levels of noise (s_tmin, restart_max, ...) mean that ratio. Errors: `InvalidInput`, before any evaluation.
    """
    if not 0 < sigmas[0] <= 1:
        raise InvalidInput("sigmas[0]", sigmas[0], "a number above 0, at most 1, on the flow path")
    levels_of = schedule if isinstance(schedule, FlowSchedule) else FlowSchedule()
    first = min(sigmas[0], levels_of.sigma_at_share(LAST_SHARE))
    levels = [sigma / (1 - sigma) for sigma in (first, *sigmas[1:])]
    path = VariancePreserving()  # in these variables
    inner = function(working(x) / (1 - first), levels, noise=noise, path=path, schedule=schedule, **options)
    return _translated(inner, dict(zip(levels, sigmas, strict=True)), x)


def _translated(inner: Sampler, known: dict[float, float], x: Tensor) -> Sampler:
    last = list(known.values())[-1]
    answer: Tensor | Guided | None = None  # a generator's first `send` must be None
    while True:
        try:
            call = inner.send(answer)  # pyright: ignore[reportArgumentType]
        except StopIteration as finished:
            return (finished.value * (1 - last)).to(x.dtype)
        sigma = known.get(call.sigma, call.sigma / (1 + call.sigma))
        answer = yield ModelCall(call.x / (1 + call.sigma), sigma, unconditional=call.unconditional)
