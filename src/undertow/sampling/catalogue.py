"""Samplers by name: the only place where a name becomes an algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.lookup import look_up
from undertow.diffusion.paths import Path, RectifiedFlow, VariancePreserving
from undertow.errors import InvalidInput
from undertow.sampling.ddim import ddim, ddpm
from undertow.sampling.dpm_solver import dpmpp_2m
from undertow.sampling.euler import euler, euler_a
from undertow.sampling.heun import heun
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import Sampler, SamplerFunction

_ANY_PATH = (VariancePreserving, RectifiedFlow)


@dataclass(frozen=True, kw_only=True)
class SamplerEntry:
    """An algorithm and what a planner or a menu wants to know about it.

    order: the error shrinks as step^order (of the deterministic part). stochastic: draws noise by default. evaluations:
    network calls per step, a last step to 0 may need fewer. paths: kinds of path on which its formulas hold.
    """

    function: SamplerFunction
    order: int
    stochastic: bool = False
    evaluations: int = 1
    paths: tuple[type[Path], ...] = (VariancePreserving,)


# Fresh noise of an ancestral step assumes that x = x0 + sigma noise, so the stochastic ones keep to that path. The
# deterministic ones follow an equation that both paths share: flow_euler and flow_heun are the field's names for the
# same two algorithms on the flow path.
SAMPLERS: dict[str, SamplerEntry] = {
    "ddpm": SamplerEntry(function=ddpm, order=1, stochastic=True),
    "ddim": SamplerEntry(function=ddim, order=1),
    "euler": SamplerEntry(function=euler, order=1, paths=_ANY_PATH),
    "euler_a": SamplerEntry(function=euler_a, order=1, stochastic=True),
    "heun": SamplerEntry(function=heun, order=2, evaluations=2, paths=_ANY_PATH),
    "dpmpp_2m": SamplerEntry(function=dpmpp_2m, order=2, paths=_ANY_PATH),
    "flow_euler": SamplerEntry(function=euler, order=1, paths=(RectifiedFlow,)),
    "flow_heun": SamplerEntry(function=heun, order=2, evaluations=2, paths=(RectifiedFlow,)),
}


def find_sampler(name: str, path: Path | None = None) -> SamplerEntry:
    """The entry called `name`; with `path`, one whose formulas hold on it.

    Errors: `InvalidInput` offers the nearest names, or the samplers of this path.
    """
    entry = look_up(SAMPLERS, name, "sampler")
    if path is not None and not isinstance(path, entry.paths):
        fitting = [other for other, found in SAMPLERS.items() if isinstance(path, found.paths)]
        raise InvalidInput("sampler", repr(name), f"one for {type(path).__name__}", f"take {', '.join(fitting)}")
    return entry


def start_sampler(
    name: str,
    x: Float[Tensor, "batch ..."],
    sigmas: Sequence[float],
    *,
    path: Path,
    noise: NoiseSource | None = None,
    **options: float,
) -> Sampler:
    """A sampler by name, on the path of the network it will ask. Errors: `InvalidInput`, before any evaluation."""
    return find_sampler(name, path).function(x, sigmas, noise=noise, **options)
