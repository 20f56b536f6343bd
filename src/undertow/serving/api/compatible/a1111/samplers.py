"""A1111's samplers and schedulers, by its names (modules/sd_samplers_*.py and sd_schedulers.py of version 1.10)."""

from collections.abc import Mapping
from typing import Any

from undertow.errors import InvalidInput
from undertow.known_names import AUTOMATIC, GRID_ALIASES, require_sampler
from undertow.lookup import look_up

_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_ETA = ("eta", "s_noise")

SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "DPM++ 2M": (),
    "DPM++ SDE": _ETA,
    "DPM++ 2M SDE": _ETA,
    "DPM++ 2M SDE Heun": _ETA,
    "DPM++ 2S a": _ETA,
    "DPM++ 3M SDE": _ETA,
    "Euler a": _ETA,
    "Euler": _CHURN,
    "LMS": (),
    "Heun": _CHURN,
    "HeunPP2": _CHURN,
    "DPM2": _CHURN,
    "DPM2 a": _ETA,
    "DPM fast": _ETA,
    "DPM adaptive": _ETA,
    "Restart": ("s_noise",),
    "DDIM": ("eta",),
    "DDIM CFG++": (),
    "DDPM": (),
    "PLMS": (),
    "IPNDM": (),
    "IPNDM_V": (),
    "DEIS": (),
    "UniPC": (),
    "LCM": ("s_noise",),
}
"""Ours that A1111 and Forge have too, by their names, and which of A1111's numbers each reads. A test holds it equal to
`sampling.catalogue`, which imports PyTorch."""

NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "eta": (0.0, 1.0),
    "s_churn": (0.0,),
    "s_tmin": (0.0,),
    "s_tmax": (0.0, float("inf")),
    "s_noise": (1.0,),
}
"""Values that clients send to every sampler, and that change nothing in one that does not read them."""

SCHEDULERS: Mapping[str, str] = {"automatic": "Automatic"} | {
    label.lower().replace(" ", "_"): label for label in GRID_ALIASES["A1111"]
}
"""Labels by their names."""


def schedule_of(name: str) -> str:
    """Our grid of a scheduler, by its name or its label; `AUTOMATIC` is the sampler's own. Errors: `InvalidInput`."""
    if name.lower() == AUTOMATIC:
        return AUTOMATIC
    labels = {one.lower(): one for one in GRID_ALIASES["A1111"]}
    label = labels.get(name.lower().replace("_", " "))
    if label is None:
        look_up(dict.fromkeys(SCHEDULERS.values()), name, "scheduler", listed_by="GET /sdapi/v1/schedulers")
    return GRID_ALIASES["A1111"][str(label)]


def sampler_options(sampler: str, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Options of ours out of A1111's numbers. Errors: `InvalidInput` for an unknown sampler, and for a number that it
    does not read."""
    ours = require_sampler(sampler)
    reads = next((reads for name, reads in SAMPLERS.items() if require_sampler(name) == ours), None)
    options: dict[str, float] = {}
    for name, value in numbers.items():
        if reads is not None and name in reads:
            if name != "s_tmax" or value != 0:  # which is no bound in A1111
                options[name] = value
        elif value not in NEUTRAL[name]:
            remedy = f"leave it out: {sampler} does not read it"
            raise InvalidInput(name, value, " or ".join(f"{one:g}" for one in NEUTRAL[name]), remedy)
    if reads is not None and "eta" in reads and ours != "ddim":
        options.setdefault("eta", 1.0)  # A1111's own setting, eta_ancestral; ours is 0 for some
    return options


def samplers_json() -> list[dict[str, Any]]:
    """GET /sdapi/v1/samplers."""
    return [{"name": name, "aliases": [require_sampler(name)], "options": {}} for name in SAMPLERS]


def schedulers_json() -> list[dict[str, Any]]:
    """GET /sdapi/v1/schedulers."""
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
        for name, label in SCHEDULERS.items()
    ]
