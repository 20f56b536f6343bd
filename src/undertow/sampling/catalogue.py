"""Samplers by name: the only place where a name becomes an algorithm."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.lookup import look_up
from undertow.diffusion.paths import Path, RectifiedFlow
from undertow.errors import InvalidInput
from undertow.sampling.entries import SAMPLERS
from undertow.sampling.entry import TOOLS, SamplerEntry
from undertow.sampling.flow import along_flow
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import Sampler

__all__ = ["ALIASES", "SAMPLERS", "SamplerEntry", "canonical_name", "find_sampler", "start_sampler"]

ALIASES: dict[str, dict[str, str]] = {
    tool: {alias: name for name, entry in SAMPLERS.items() for alias in entry.aliases.get(tool, ())} for tool in TOOLS
}
"""Names of other tools, tool by tool, and ours for the same algorithm."""


def canonical_name(name: str) -> str:
    """Our name for a sampler that may be called as ComfyUI, A1111 or diffusers call it.

    Errors: `InvalidInput` offers the nearest of our names.
    """
    if name in SAMPLERS:
        return name
    for names in ALIASES.values():
        if name in names:
            return names[name]
    look_up(SAMPLERS, name, "sampler")
    raise AssertionError("look_up refuses what is not in the catalogue")


def find_sampler(name: str, path: Path | None = None) -> SamplerEntry:
    """The entry called `name`, here or in another tool; with `path`, one that runs on it.

    Errors: `InvalidInput` offers the nearest names, or the samplers of this path.
    """
    entry = SAMPLERS[canonical_name(name)]
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
    entry = find_sampler(name, path)
    # Churn is noise beside x0 of full size, whatever sampler it is for.
    if isinstance(path, RectifiedFlow) and (not entry.native_flow or options.get("s_churn", 0) > 0):
        return along_flow(entry.function, x, sigmas, noise=noise, **options)
    return entry.function(x, sigmas, noise=noise, **options)
