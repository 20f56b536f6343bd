"""Names that a request may say, without what they stand for: so that a misspelled one is refused before torch is
imported. The catalogues hold what they name; tests/test_known_names.py holds the two equal."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, isinf
from typing import Literal

from undertow.errors import InvalidInput
from undertow.lookup import did_you_mean, look_up

SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "ddpm": ("DDPM", "DDPMScheduler", "DDPMParallelScheduler"),
    "ddim": ("DDIM", "DDIMScheduler", "DDIMParallelScheduler"),
    "ddim_inverse": ("DDIMInverseScheduler",),
    "euler": ("Euler", "EulerDiscreteScheduler"),
    "euler_a": ("euler_ancestral", "Euler a", "EulerAncestralDiscreteScheduler"),
    "heun": ("Heun", "HeunDiscreteScheduler"),
    "heunpp2": ("HeunPP2",),
    "dpm2": ("dpm_2", "DPM2", "KDPM2DiscreteScheduler"),
    "dpm2_a": ("dpm_2_ancestral", "DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    "restart": ("Restart",),
    "dpm_fast": ("DPM fast",),
    "dpm_fast_comfyui": ("dpm_fast",),
    "dpm_adaptive": ("DPM adaptive",),
    "dpm_adaptive_comfyui": ("dpm_adaptive",),
    "lms": ("LMS", "LMSDiscreteScheduler"),
    "lms_comfyui": ("lms",),
    "pndm": ("PLMS", "PNDMScheduler"),
    "ipndm": ("IPNDM", "IPNDMScheduler"),
    "ipndm_comfyui": ("ipndm",),
    "ipndm_v": ("IPNDM_V",),
    "ipndm_v_comfyui": ("ipndm_v",),
    "deis": ("DEIS",),
    "deis_log_rho": ("DEISMultistepScheduler",),
    "unipc": ("uni_pc", "UniPC", "UniPCMultistepScheduler(solver_type=bh1)"),
    "unipc_bh2": ("uni_pc_bh2", "UniPCMultistepScheduler"),
    "res_multistep": (),
    "res_multistep_a": ("res_multistep_ancestral",),
    "gradient_estimation": (),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler",),
    "dpmpp_2s_a": ("dpmpp_2s_ancestral", "DPM++ 2S a"),
    "dpmpp_2m": ("DPM++ 2M", "DPMSolverMultistepScheduler"),
    "dpmpp_3m": ("DPMSolverMultistepScheduler(solver_order=3)",),
    "dpmpp_sde": ("dpmpp_sde_gpu", "DPM++ SDE", "DPMSolverSDEScheduler"),
    "dpmpp_2m_sde": ("dpmpp_2m_sde_gpu", "DPM++ 2M SDE", "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++)"),
    "dpmpp_2m_sde_heun": (
        "dpmpp_2m_sde_heun_gpu",
        "DPM++ 2M SDE Heun",
        "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++; solver_type=heun)",
    ),
    "dpmpp_3m_sde": ("dpmpp_3m_sde_gpu", "DPM++ 3M SDE"),
    "er_sde": (),
    "seeds_2": (),
    "seeds_3": (),
    "sa_solver": ("SASolverScheduler",),
    "sa_solver_pece": (),
    "lcm": ("LCM", "LCMScheduler"),
    "tcd": ("TCDScheduler",),
    "euler_cfg_pp": ("DDIM CFG++",),
    "euler_a_cfg_pp": ("euler_ancestral_cfg_pp",),
    "dpmpp_2s_a_cfg_pp": ("dpmpp_2s_ancestral_cfg_pp",),
    "dpmpp_2m_cfg_pp": (),
    "res_multistep_cfg_pp": (),
    "res_multistep_a_cfg_pp": ("res_multistep_ancestral_cfg_pp",),
    "gradient_estimation_cfg_pp": (),
    "edm_euler": ("EDMEulerScheduler",),
    "edm_dpmpp_2m": ("EDMDPMSolverMultistepScheduler",),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler",),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler",),
}
"""Our samplers, each with what ComfyUI, A1111 and diffusers call it (`sampling.catalogue`)."""

PathName = Literal["VariancePreserving", "VarianceExploding", "RectifiedFlow"]
"""Kinds of paths that noise levels go along (`diffusion.paths`)."""

TimestepMap = Literal["interpolated", "nearest"]
"""How a noise level becomes a timestep (`diffusion.schedules`)."""

StartNoise = Literal["variance", "sigma"]
"""How large pure noise is where sampling starts: of the variance that the network's input was trained with
(`diffusion.paths`), or sigma times standard normal noise, a little less."""

SAMPLER_PATHS: Mapping[str, tuple[PathName, ...]] = {
    "ddim_inverse": ("VariancePreserving", "VarianceExploding"),
    "tcd": ("VariancePreserving", "VarianceExploding"),
    "edm_euler": ("VarianceExploding",),
    "edm_dpmpp_2m": ("VarianceExploding",),
    "flow_euler": ("RectifiedFlow",),
    "flow_heun": ("RectifiedFlow",),
}
"""Samplers that do not run on every path."""

INVERSE_SAMPLERS = ("ddim_inverse",)
"""Samplers that run from a picture to noise."""

DISCARDING_SAMPLERS = ("dpm2", "dpm2_a", "unipc", "unipc_bh2")
"""Samplers for which ComfyUI and A1111 leave out the last level above 0."""


@dataclass(frozen=True)
class Bounds:
    """Numbers that an option takes. low and high are allowed; whole: integers only."""

    low: float = 0.0
    high: float = inf
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return isfinite(value) and self.low <= value <= self.high and (not self.whole or value == int(value))

    def describe(self) -> str:
        """In words."""
        kind = "whole" if self.whole else "finite"
        if isinf(self.high):
            return f"a {kind} number, at least {self.low:g}"
        return f"a {kind} number from {self.low:g} to {self.high:g}"


_TUNED: tuple[tuple[tuple[str, ...], Mapping[str, Bounds]], ...] = (
    (("ddim",), {"eta": Bounds(), "stride": Bounds(whole=True)}),
    (
        (
            "euler",
            "heun",
            "heunpp2",
            "dpm2",
            "edm_euler",
            "flow_euler",
            "flow_heun",
        ),
        {"s_churn": Bounds(), "s_tmin": Bounds(), "s_tmax": Bounds(), "s_noise": Bounds()},
    ),
    (
        (
            "euler_a",
            "dpm2_a",
            "dpm_fast",
            "dpm_fast_comfyui",
            "res_multistep_a",
            "dpmpp_2s_a",
            "dpmpp_2m_sde",
            "dpmpp_2m_sde_heun",
            "dpmpp_3m_sde",
            "seeds_3",
            "euler_a_cfg_pp",
            "dpmpp_2s_a_cfg_pp",
            "res_multistep_a_cfg_pp",
        ),
        {"eta": Bounds(), "s_noise": Bounds()},
    ),
    (("restart",), {"s_noise": Bounds(), "restart_min": Bounds(), "restart_max": Bounds()}),
    (
        (
            "dpm_adaptive",
            "dpm_adaptive_comfyui",
        ),
        {
            "order": Bounds(2, 3, whole=True),
            "rtol": Bounds(1e-08),
            "atol": Bounds(1e-08),
            "h_init": Bounds(0.0001),
            "pcoeff": Bounds(0, 10),
            "icoeff": Bounds(0, 10),
            "dcoeff": Bounds(0, 10),
            "accept_safety": Bounds(0, 1),
            "eta": Bounds(),
            "s_noise": Bounds(),
        },
    ),
    (
        (
            "lms",
            "lms_comfyui",
            "ipndm",
            "ipndm_comfyui",
            "ipndm_v",
            "ipndm_v_comfyui",
            "deis",
        ),
        {"order": Bounds(1, 4, whole=True)},
    ),
    (
        (
            "deis_log_rho",
            "unipc",
            "unipc_bh2",
        ),
        {"order": Bounds(1, 3, whole=True)},
    ),
    (
        (
            "gradient_estimation",
            "gradient_estimation_cfg_pp",
        ),
        {"ge_gamma": Bounds()},
    ),
    (
        (
            "dpmpp_sde",
            "seeds_2",
        ),
        {"eta": Bounds(), "s_noise": Bounds(), "r": Bounds(0.01, 1)},
    ),
    (("er_sde",), {"order": Bounds(1, 3, whole=True), "s_noise": Bounds()}),
    (
        (
            "sa_solver",
            "sa_solver_pece",
        ),
        {
            "eta": Bounds(),
            "s_noise": Bounds(),
            "s_tmin": Bounds(),
            "s_tmax": Bounds(),
            "predictor_order": Bounds(1, 4, whole=True),
            "corrector_order": Bounds(0, 4, whole=True),
        },
    ),
    (("lcm",), {"s_noise": Bounds()}),
    (("tcd",), {"gamma": Bounds(0, 1), "s_noise": Bounds()}),
)
"""Samplers, and the options that all of them have."""

SAMPLER_OPTIONS: Mapping[str, Mapping[str, Bounds]] = {name: options for names, options in _TUNED for name in names}
"""What samplers can be tuned with; those that are not here have no option."""

GRIDS = (
    "normal",
    "linspace",
    "karras",
    "exponential",
    "sgm_uniform",
    "simple",
    "ddim",
    "ddim_comfyui",
    "polyexponential",
    "vp",
    "beta",
    "beta_comfyui",
    "beta_sigma",
    "kl_optimal",
    "kl_optimal_forge",
    "laplace",
    "linear_quadratic",
    "ays_sd15",
    "ays_sdxl",
    "gits_sd15",
    "gits_sdxl",
    "turbo",
)
"""Our grids of noise levels (`diffusion.grids`)."""

GRID_ALIASES: dict[str, dict[str, str]] = {
    "ComfyUI": {
        "ddim_uniform": "ddim_comfyui",
        "beta": "beta_comfyui",
        "SDTurboScheduler": "turbo",
        "LaplaceScheduler": "laplace",
        "VPScheduler": "vp",
        "PolyexponentialScheduler": "polyexponential",
    },
    "A1111": {
        "Uniform": "normal",
        "Karras": "karras",
        "Exponential": "exponential",
        "Polyexponential": "polyexponential",
        "SGM Uniform": "sgm_uniform",
        "KL Optimal": "kl_optimal_forge",
        "Align Your Steps": "ays_sd15",
        "Align Your Steps GITS": "gits_sd15",
        "Simple": "simple",
        "Normal": "normal",
        "DDIM": "ddim_comfyui",
        "Beta": "beta_sigma",
        "Turbo": "turbo",
    },
    "diffusers": {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_beta_sigmas": "beta_sigma",
        "trailing": "turbo",
        "leading": "ddim",
    },
}
"""Names of other tools, and ours for the same grid. Where one of theirs is ours for another grid, ours counts."""

TABLED_GRIDS = ("ays_sd15", "ays_sdxl", "gits_sd15", "gits_sdxl")
"""Grids that are tables for Stable Diffusion, which no flow has."""

COUNTED_GRIDS = ("simple", "ddim", "ddim_comfyui", "turbo", *TABLED_GRIDS)
"""Grids that have no more steps than the network has training timesteps."""

AUTOMATIC_GRIDS: Mapping[str, str] = {
    **dict.fromkeys(["dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a", "restart"], "karras"),
    **dict.fromkeys(["dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"], "exponential"),
    "ddim": "ddim_comfyui",
}
"""A1111's "Automatic": the grid in the options of a sampler (modules/sd_samplers_kdiffusion.py); of others its uniform
one, `normal`."""

GUIDANCE = (
    "none",
    "cfg",
    "apg",
    "zero_star",
    "tangential",
    "pag",
    "seg",
    "sag",
    "threshold",
    "mimic",
    "rescale",
    "free_u",
)
"""Guidance methods (`engine.guidance_method`)."""

DIALECTS = ("plain", "a1111", "comfy", "compel")
"""Prompt dialects (`encoders.prompts`)."""

Prediction = Literal["epsilon", "v", "x0", "velocity", "edm", "edm_v"]

PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "vpred": "v",
    "v_pred": "v",
    "x0": "x0",
    "sample": "x0",
    "velocity": "velocity",
    "edm": "edm",
    "edm_v": "edm_v",
}
"""What a network may predict, by its names in any tool (`checkpoints.identify.prediction`)."""

PrecisionName = Literal["f32", "f16", "bf16"]

PRECISIONS: Mapping[str, str] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Types that networks compute in, by their short names."""

BackendName = Literal["eager", "packed", "background", "compile", "openvino"]
"""What computes U-Nets (`unet.runner.Backend`), where none is chosen by itself."""

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "privateuseone", "meta")
"""Kinds of devices that torch computes on; a number chooses one of several, such as cuda:1."""

OFFERED = 5
"""Names that an error offers of many."""

AUTOMATIC = "automatic"
"""A1111's name for the grid that it takes for a sampler."""

_SAMPLER_NAMES = {name: name for name in SAMPLERS} | {
    alias: name for name, aliases in SAMPLERS.items() for alias in aliases if alias not in SAMPLERS
}
_GRID_NAMES = {name: name for name in GRIDS} | {
    alias: name for names in GRID_ALIASES.values() for alias, name in names.items() if alias not in GRIDS
}

_ENDED = re.compile(rf"(.+)_({'|'.join(GRIDS)})")
_DEVICE = re.compile(rf"({'|'.join(DEVICES)})(:\d+)?")
_METHOD = re.compile(r"\s*([a-z_]+)\s*(?:\(([^()]*)\))?\s*")


def split_sampler(name: str) -> tuple[str, str | None]:
    """A sampler's name, and our grid of the one that may end it: "DPM++ 2M Karras", "dpmpp_2m_karras"."""
    if name in _SAMPLER_NAMES:
        return name, None
    first, _, last = name.strip().rpartition(" ")
    grids = {theirs.lower(): ours for theirs, ours in GRID_ALIASES["A1111"].items()}
    if first in _SAMPLER_NAMES and last.lower() in grids:
        return first, grids[last.lower()]
    match = _ENDED.fullmatch(name)
    return (match[1], match[2]) if match and match[1] in _SAMPLER_NAMES else (name, None)


def require_sampler(name: str) -> str:
    """Our name of the sampler. Errors: `InvalidInput` offers the nearest names, here and in other tools."""
    return look_up(_SAMPLER_NAMES, split_sampler(name)[0], "sampler", listed_by="undertow samplers")


def require_drawing(name: str, path: PathName | None) -> None:
    """path: of the model; `None` where it is not known. Errors: `InvalidInput` for a sampler that does not run on it,
    and for one that does not end in a picture."""
    sampler = require_sampler(name)
    if sampler in INVERSE_SAMPLERS:
        raise InvalidInput("sampler", repr(name), "one that ends in a picture", "it runs from one to noise")
    if path is not None and path not in SAMPLER_PATHS.get(sampler, (path,)):
        fitting = [one for one in SAMPLERS if path in SAMPLER_PATHS.get(one, (path,)) and one not in INVERSE_SAMPLERS]
        remedy = f"take {', '.join(fitting[:OFFERED])} or another that `undertow samplers` lists for it"
        raise InvalidInput("sampler", repr(name), f"one for {path}", remedy)


def require_sampler_options(sampler: str, options: Mapping[str, float]) -> None:
    """Errors: `InvalidInput` for an option that this sampler lacks, and for a value out of its range."""
    name = require_sampler(sampler)
    known = SAMPLER_OPTIONS.get(name, {})
    for option, value in options.items():
        if option not in known:
            offered = f"one of {', '.join(known)}" if known else "no option"
            raise InvalidInput("sampler option", repr(option), f"{offered} for {name}")
        if value not in known[option]:
            raise InvalidInput(option, value, f"{known[option].describe()}, for {name}")


def require_schedule(name: str) -> None:
    """Errors: those of `find_grid`."""
    if name.lower() != AUTOMATIC:
        find_grid(name)


def find_grid(name: str) -> str:
    """Our name of the grid. Errors: `InvalidInput` offers the nearest names, here and in other tools."""
    return look_up(_GRID_NAMES, name, "schedule", listed_by="undertow samplers --schedules")


def grid_beside(sampler: str, ending: str | None, schedule: str | None) -> str | None:
    """The grid that a request names; `None` where it names none. sampler: ours. ending: a grid's name at the end of the
    sampler's, which a `schedule` of its own goes before."""
    if schedule is None:
        return ending
    if schedule.lower() == AUTOMATIC:
        return ending or AUTOMATIC_GRIDS.get(sampler, "normal")
    return schedule


def require_dialect(name: str) -> None:
    """Errors: `InvalidInput` offers the nearest names."""
    look_up(dict.fromkeys(DIALECTS), name, "dialect")


def split_guidance(text: str) -> list[tuple[str, str]]:
    """Each guidance method of a request, and what stands in its parentheses. Errors: `InvalidInput` for what is no
    name, and for a name that there is not."""
    found: list[tuple[str, str]] = []
    for part in text.split("+"):
        match = _METHOD.fullmatch(part)
        if match is None:
            raise InvalidInput(
                "guidance_method", repr(part), "a name with options, like pag(scale=2,end=0.5)", "join methods with +"
            )
        look_up(dict.fromkeys(GUIDANCE), match[1], "guidance_method")
        found.append((match[1], match[2] or ""))
    return found


def parse_prediction(name: str) -> Prediction:
    """What a network predicts that is called so in any tool. Errors: `InvalidInput`."""
    found = PREDICTIONS.get(name.strip().lower())
    if found is None:
        raise InvalidInput("prediction", repr(name), "epsilon, v, x0, velocity or edm", "leave it out to have it found")
    return found


def require_device_name(argument: str, name: str) -> None:
    """Errors: `InvalidInput` for what is called like no device; whether it is there, torch knows."""
    if not _DEVICE.fullmatch(name):
        near = did_you_mean(name.partition(":")[0], DEVICES).strip()
        raise InvalidInput(argument, repr(name), "a device such as cpu, cuda, cuda:1 or mps", near)
