"""Names of samplers and grids in A1111, ComfyUI and diffusers, to ours and back."""

from undertow.known_names import GRID_ALIASES, grid_beside, split_sampler
from undertow.sampling.catalogue import SAMPLERS, canonical_name


def read_names(sampler: str, schedule: str | None = None, *, tool: str | None = None) -> tuple[str, str | None]:
    """Our sampler, and our grid or `None` where nothing names one.

    A sampler's name may end in its grid's, as in A1111 before 1.9: "DPM++ 2M Karras". A `schedule` of its own comes
    first; "Automatic" is what A1111 takes for the sampler. tool: whose names they are first of all, for those that
    another tool has for something else ("lms" in ComfyUI). Errors: `InvalidInput` offers the nearest names.
    """
    name, ending = split_sampler(sampler)
    name = canonical_name(name, tool)
    theirs = None if schedule is None else GRID_ALIASES.get(tool or "", {}).get(schedule, schedule)
    return name, grid_beside(name, ending, theirs)


def sampler_in(tool: str, sampler: str) -> str | None:
    """What a tool calls one of our samplers; `None` where it has none. The first of several names."""
    return next(iter(SAMPLERS[sampler].aliases.get(tool, ())), None)


def schedule_in(tool: str, schedule: str) -> str | None:
    """What a tool calls one of our grids; `None` where it has none."""
    found = next((theirs for theirs, ours in GRID_ALIASES[tool].items() if ours == schedule), None)
    return schedule if found is None and schedule in _SHARED.get(tool, ()) else found


# Grids that ComfyUI calls as we do.
_SHARED = {"ComfyUI": ("normal", "karras", "exponential", "sgm_uniform", "simple", "kl_optimal", "linear_quadratic")}
