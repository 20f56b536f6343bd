"""What the catalogue says about a sampler, and the decorator that says it beside the algorithm."""

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Protocol, cast, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.paths import Path, RectifiedFlow, VarianceExploding, VariancePreserving, working
from undertow.diffusion.schedules import Schedule
from undertow.errors import InvalidInput
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import NumberRange, Option
from undertow.sampling.protocol import GuidedSampler, Sampler, require_noise
from undertow.step_counts import require_grid

ANY_PATH = (VariancePreserving, VarianceExploding, RectifiedFlow)
DIFFUSION = (VariancePreserving, VarianceExploding)

TOOLS = ("ComfyUI", "A1111", "diffusers")

Algorithm = Callable[..., Sampler] | Callable[..., GuidedSampler]
"""A generator function of x, sigmas and keywords: `noise`, if it draws any, `path` and `schedule`, if its formulas
depend on them, and its options."""

CONTEXT = ("noise", "path", "schedule")
"""Keywords of an algorithm that are no options of a request."""


@runtime_checkable
class SamplerFunction(Protocol):
    """Starts a sampler at `x`, which is at sigmas[0]; it ends at sigmas[-1] in the dtype of `x`.

    path: that of x. schedule: the levels that the network was trained on; without it, Stable Diffusion's.
    """

    __name__: str

    def __call__(
        self,
        x: Float[Tensor, "batch ..."],
        sigmas: Sequence[float],
        *,
        noise: NoiseSource | None = None,
        path: Path = ...,
        schedule: Schedule | None = None,
        **options: float,
    ) -> Sampler: ...


@dataclass(frozen=True, kw_only=True)
class SamplerEntry:
    """An algorithm and what a planner or a menu needs to know about it.

    order: the error shrinks as step^order (of the deterministic part, after the first steps); `None` for distilled
    models, whose every estimate is a picture. stochastic: draws noise by default. evaluations: network calls per step,
    of which a last step to 0 may need fewer; `None` when the sampler decides. paths: kinds of path on which it runs.
    native_flow: its formulas hold on the flow path as they are; others run there by a change of variables
    (`flow.along_flow`). guided: needs the unconditional estimate (CFG++). inverse: runs from a clean x up the grid.
    discards_penultimate: ComfyUI and A1111 leave out the last level above 0 for it (`grids.discard_penultimate`).
    aliases: its names in other tools, by tool. options: the numbers that it can be tuned with, by name.
    """

    function: SamplerFunction
    order: int | None
    stochastic: bool = False
    evaluations: int | None = 1
    paths: tuple[type[Path], ...] = ANY_PATH
    native_flow: bool = False
    guided: bool = False
    inverse: bool = False
    discards_penultimate: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])

    def only_on(self, path: type[Path], *, diffusers: str) -> "SamplerEntry":
        """The same algorithm on one path alone, where diffusers has a class of its own for it."""
        native_flow = self.native_flow and path is RectifiedFlow
        return replace(self, paths=(path,), native_flow=native_flow, aliases={"diffusers": (diffusers,)})


@runtime_checkable
class CataloguedSampler(SamplerFunction, Protocol):
    """A sampler function that carries its entry for the catalogue."""

    entry: SamplerEntry


def sampler(
    *,
    order: int | None,
    evaluations: int | None = 1,
    paths: tuple[type[Path], ...] = ANY_PATH,
    native_flow: bool = False,
    guided: bool = False,
    inverse: bool = False,
    discards_penultimate: bool = False,
    comfyui: tuple[str, ...] = (),
    a1111: tuple[str, ...] = (),
    diffusers: tuple[str, ...] = (),
    options_of: CataloguedSampler | None = None,
) -> Callable[[Algorithm], CataloguedSampler]:
    """Gives an algorithm the interface that all samplers share, and attaches its `SamplerEntry`.

    An algorithm that draws noise has a parameter `noise`: without a default it always draws, with a default it depends
    on its options. One whose formulas differ between the paths has a parameter `path`, and one that needs to know the
    network's levels `schedule`. Its other keywords are its options, annotated with a `NumberRange`. comfyui, a1111,
    diffusers: its names in ComfyUI's KSampler, in the menu of A1111 and Forge, and among diffusers' classes, with the
    options that select the algorithm. options_of: the algorithm that this one is a variant of, whose options and
    defaults it receives as `**options`. See `SamplerEntry` for the other fields.
    """

    def declare(algorithm: Algorithm) -> CataloguedSampler:
        parameters = inspect.signature(algorithm).parameters
        if options_of is None:
            own = [name for name in parameters if name not in ("x", "sigmas", *CONTEXT)]
            options, defaults = {name: _option(parameters[name]) for name in own}, {}
        else:
            options = options_of.entry.options
            defaults = {name: option.default for name, option in options.items()}
        needs_noise = "noise" in parameters and parameters["noise"].default is inspect.Parameter.empty
        start = _checked(algorithm, options, defaults, parameters.keys() & set(CONTEXT), needs_noise=needs_noise)
        names = dict(zip(TOOLS, (comfyui, a1111, diffusers), strict=True))
        entry = SamplerEntry(
            function=start,
            order=order,
            stochastic=needs_noise,
            evaluations=evaluations,
            paths=paths,
            native_flow=native_flow,
            guided=guided,
            inverse=inverse,
            discards_penultimate=discards_penultimate,
            aliases={tool: given for tool, given in names.items() if given},
            options=options,
        )
        start.entry = entry  # pyright: ignore[reportAttributeAccessIssue]
        return cast(CataloguedSampler, start)

    return declare


def _checked(
    algorithm: Algorithm,
    options: Mapping[str, Option],
    defaults: Mapping[str, float | None],
    context: Set[str],
    *,
    needs_noise: bool,
) -> SamplerFunction:
    """The algorithm with its arguments checked when it is called: a generator runs nothing before its first step.
    defaults: of the options that its signature does not have."""
    name = algorithm.__name__

    @wraps(algorithm)
    def start(
        x: Float[Tensor, "batch ..."],
        sigmas: Sequence[float],
        *,
        noise: NoiseSource | None = None,
        path: Path = VariancePreserving(),  # noqa: B008
        schedule: Schedule | None = None,
        **chosen: float,
    ) -> Sampler:
        require_grid(sigmas)
        _require_options(name, chosen, options)
        if needs_noise:
            require_noise(noise, name)
        if noise is not None:
            noise.require_count(len(x))
        around = {"noise": noise, "path": path, "schedule": schedule}
        given = {keyword: around[keyword] for keyword in context}
        return _cast_result(algorithm(working(x), sigmas, **given, **{**defaults, **chosen}), x.dtype)

    return start


def _cast_result(sampler: Sampler | GuidedSampler, dtype: torch.dtype) -> Sampler:
    return (yield from sampler).to(dtype)


def _option(parameter: inspect.Parameter) -> Option:
    _, bounds = get_args(parameter.annotation)
    assert isinstance(bounds, NumberRange)
    return Option(**vars(bounds), default=parameter.default)


def _require_options(name: str, chosen: Mapping[str, float], known: Mapping[str, Option]) -> None:
    for option, value in chosen.items():
        if option not in known:
            offered = f"one of {', '.join(known)}" if known else "no option"
            raise InvalidInput("sampler option", repr(option), f"{offered} for {name}")
        known[option].require(option, value, name)
