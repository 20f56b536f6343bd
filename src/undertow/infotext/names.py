"""Samplers and schedules as A1111 and ComfyUI spell them, and ours.

A1111 once had one name for both ("DPM++ 2M Karras"); since version 1.9 the schedule is a setting of its own, and
"Automatic" is the one that a sampler is made for (modules/sd_samplers_kdiffusion.py).
"""

from collections.abc import Mapping

from undertow.diffusion.grids import GRID_ALIASES, GRIDS
from undertow.sampling.catalogue import ALIASES, SAMPLERS

AUTOMATIC = "Automatic"

AUTOMATIC_SCHEDULES: Mapping[str, str] = {
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2m_sde_heun": "exponential",
    "dpmpp_2s_a": "karras",
    "dpmpp_3m_sde": "exponential",
    "dpm2": "karras",
    "dpm2_a": "karras",
    "restart": "karras",
    "ddim": "ddim",
    "pndm": "ddim",
    "unipc": "ddim",
}
"""By sampler, what A1111 takes for "Automatic"; its uniform grid for others."""

UNIFORM = "normal"


def sampler_from_a1111(name: str) -> tuple[str | None, str | None]:
    """Our sampler and schedule for A1111's name of a sampler, or of both; `None` for what is unknown or not said."""
    known = _folded(ALIASES["A1111"])
    if (found := known.get(name.lower())) is not None:
        return found, None
    schedules = _folded(GRID_ALIASES["A1111"])
    for schedule in sorted(schedules, key=len, reverse=True):
        if name.lower().endswith(f" {schedule}"):
            return known.get(name.lower().removesuffix(f" {schedule}")), schedules[schedule]
    return None, None


def schedule_from_a1111(name: str, sampler: str) -> str | None:
    """Our schedule for A1111's name of one; what "Automatic" is depends on the sampler. `None` for unknown ones."""
    if name.lower() == AUTOMATIC.lower():
        return AUTOMATIC_SCHEDULES.get(sampler, UNIFORM)
    return _folded(GRID_ALIASES["A1111"]).get(name.lower().replace("sgmuniform", "sgm uniform"))


def a1111_sampler(name: str) -> str:
    """A1111's name for a sampler of ours; our own where it has none."""
    ours = name
    for names in ALIASES.values():
        ours = names.get(ours, ours)
    entry = SAMPLERS.get(ours)
    return next(iter(entry.aliases.get("A1111", ())), ours) if entry is not None else name


def a1111_schedule(name: str) -> str:
    """A1111's name for a schedule of ours; our own where it has none."""
    ours = name if name in GRIDS else next((names[name] for names in GRID_ALIASES.values() if name in names), name)
    theirs = [label for label, grid in GRID_ALIASES["A1111"].items() if grid == ours]
    return next((label for label in theirs if label.lower().replace(" ", "_") == ours), theirs[0] if theirs else ours)


def sampler_from_comfy(name: str) -> str | None:
    """Our sampler for one of ComfyUI's; `None` for unknown ones."""
    return ALIASES["ComfyUI"].get(name, name if name in SAMPLERS else None)


def schedule_from_comfy(name: str) -> str | None:
    """Our schedule for one of ComfyUI's; `None` for unknown ones."""
    return GRID_ALIASES["ComfyUI"].get(name, name if name in GRIDS else None)


def _folded(names: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): ours for name, ours in names.items()}
