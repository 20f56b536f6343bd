"""What diffusers' scheduler classes draw with: scheduler_config.json to a `ModelSampler`.

`schedulers.levels` and `diffusion.scheduler_config` read from the same file what belongs to the network, its levels and
what it predicts; here is what diffusers keeps beside it, so that a request draws what diffusers draws from the folder.
Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from undertow.errors import ConfigError
from undertow.json_fields import whole
from undertow.limits import TIMESTEPS
from undertow.schedulers.model_sampler import SPACINGS, ModelSampler

CURVES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta_sigma"}
"""diffusers' switches for levels that are spaced in sigma, and our grids."""

_KINDS = ("", "Img2Img", "Inpaint", "PAG", "PAGImg2Img", "PAGInpaint")

# Pipelines whose constructors set steps_offset to 1, turn clip_sample off and skip_prk_steps on, whatever is written.
_CORRECTED = {f"StableDiffusion{kind}Pipeline" for kind in _KINDS}


@dataclass(frozen=True, kw_only=True)
class _Class:
    """A scheduler class: its sampler, the fields it reads with their defaults (diffusers 0.42), and the values of those
    that change what is drawn in a way that we have."""

    sampler: ModelSampler
    defaults: Mapping[str, Any]
    honored: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])


class _Flow(_Class):
    """One whose levels `FlowSchedule` gives."""


_CORRECTIONS = {"steps_offset": 1, "clip_sample": False, "skip_prk_steps": True}

_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_CURVED = dict.fromkeys(CURVES, False)
_ENDED = {"final_sigmas_type": "zero"}
_ENDS = {"final_sigmas_type": ("zero", "sigma_min")}
_OWN_ENDS = {"sigma_min": None, "sigma_max": None}
_AS_BETAS = {"use_flow_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}


def _only(defaults: Mapping[str, Any]) -> dict[str, tuple[object, ...]]:
    """Fields of which only the default is honored."""
    return {key: (value,) for key, value in defaults.items()}


def _in_sigma(sampler: str, fields: Mapping[str, Any], **honored: tuple[object, ...]) -> _Class:
    """Schedulers that count in sigma, and start there unless their timesteps do not reach the last one."""
    made = ModelSampler(scheduler="", sampler=sampler, counting="fractions", visited_ends=True)
    return _Class(sampler=made, defaults=_SPACED | dict(fields), honored=honored)


def _multistep(sampler: str, fields: Mapping[str, Any], **honored: tuple[object, ...]) -> _Class:
    """Multistep solvers, whose Karras' levels are shown at the nearest timestep."""
    made = ModelSampler(scheduler="", sampler=sampler, counting="one_more", timestep_map="nearest")
    defaults = _SPACED | {"use_karras_sigmas": False} | _AS_BETAS | dict(fields)
    return _Class(sampler=made, defaults=defaults, honored=_only(_AS_BETAS) | honored)


_SIGMA_ONLY = {"interpolation_type": "linear", "timestep_type": "discrete"} | _OWN_ENDS
_DPM_ONLY = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "use_lu_lambdas": False,
    "solver_order": 2,
}
_UNIPC_ONLY = {"predict_x0": True, "lower_order_final": True, "disable_corrector": []} | _OWN_ENDS
_DEIS_ONLY = {"algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True}
_TABLE_ONLY = {"clip_sample": False}

_DDIM = _Class(
    sampler=ModelSampler(scheduler="", sampler="ddim", stride=True),
    defaults={"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True, "clip_sample": True},
    honored=_only(_TABLE_ONLY),
)

_CLASSES: dict[str, _Class] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "PNDMScheduler": _Class(
        sampler=ModelSampler(scheduler="", sampler="pndm"),
        defaults={
            "timestep_spacing": "leading",
            "steps_offset": 0,
            "set_alpha_to_one": False,
            "skip_prk_steps": False,
            "prediction_type": "epsilon",
        },
        honored=_only({"timestep_spacing": "leading", "skip_prk_steps": True, "prediction_type": "epsilon"}),
    ),
    "EulerDiscreteScheduler": _in_sigma("euler", _CURVED | _ENDED | _SIGMA_ONLY, **_ENDS, **_only(_SIGMA_ONLY)),
    "EulerAncestralDiscreteScheduler": _in_sigma("euler_a", {}),
    "HeunDiscreteScheduler": _in_sigma("heun", _CURVED | {"clip_sample": False}, **_only(_TABLE_ONLY)),
    "LMSDiscreteScheduler": _in_sigma("lms", _CURVED),
    "KDPM2DiscreteScheduler": _in_sigma("dpm2", _CURVED, use_karras_sigmas=(False,)),
    "DPMSolverMultistepScheduler": _multistep(
        "dpmpp_2m",
        _ENDED | _DPM_ONLY | {"lambda_min_clipped": -float("inf")},
        **_only(_DPM_ONLY | _ENDED | {"lambda_min_clipped": -float("inf")}),
    ),
    "UniPCMultistepScheduler": _multistep(
        "unipc_bh2",
        _ENDED | _UNIPC_ONLY | {"solver_order": 2, "solver_type": "bh2"},
        **_only(_UNIPC_ONLY | _ENDED),
        solver_order=(1, 2, 3),
        solver_type=("bh1", "bh2", "midpoint", "heun", "logrho"),
    ),
    "DEISMultistepScheduler": _multistep(
        "deis_log_rho",
        _DEIS_ONLY | {"solver_order": 2},
        **_only(_DEIS_ONLY | {"use_karras_sigmas": False}),
        solver_order=(1, 2, 3),
    ),
    "LCMScheduler": _Class(
        sampler=ModelSampler(scheduler="", sampler="lcm", spacing="distilled"),
        defaults={"original_inference_steps": 50, "clip_sample": False},
        honored=_only(_TABLE_ONLY),
    ),
    # Pipelines give it eta = 0 unless told otherwise, which is our gamma.
    "TCDScheduler": _Class(
        sampler=ModelSampler(scheduler="", sampler="tcd", spacing="distilled", options={"gamma": 0.0}),
        defaults={"original_inference_steps": 50, "clip_sample": False},
        honored=_only(_TABLE_ONLY),
    ),
    "FlowMatchEulerDiscreteScheduler": _Flow(
        sampler=ModelSampler(scheduler="", sampler="euler", spacing="linspace"),
        defaults=_CURVED,
        honored=_only(_CURVED),
    ),
    "FlowMatchHeunDiscreteScheduler": _Flow(
        sampler=ModelSampler(scheduler="", sampler="heun", spacing="linspace"), defaults={}
    ),
}


def read_scheduler(config: Mapping[str, Any], pipeline: str | None = None) -> ModelSampler:
    """Reads a scheduler_config.json. pipeline: the class in model_index.json, which may correct it.

    Errors: `ConfigError` names what would be drawn otherwise than in diffusers.
    """
    name = str(config.get("_class_name"))
    if name not in _CLASSES:
        raise ConfigError("_class_name", name, f"must be one of {', '.join(_CLASSES)} to be drawn as in diffusers")
    known = _CLASSES[name]
    said = {**known.defaults, **{key: value for key, value in config.items() if key in known.defaults}}
    if pipeline in _CORRECTED:
        said |= {key: _CORRECTIONS[key] for key in _CORRECTIONS.keys() & said.keys()}
    for key, values in known.honored.items():
        if said[key] not in values:
            raise ConfigError(key, said[key], f"must be {' or '.join(map(repr, values))} to be drawn as in diffusers")
    made = replace(known.sampler, scheduler=name)
    return made if isinstance(known, _Flow) else _with_fields(made, said)


def folder_sampler(config: Mapping[str, Any] | None, pipeline: str | None = None) -> ModelSampler | str | None:
    """What a folder draws with in diffusers, or why that is not known; `None` without a config, and for DDPMScheduler,
    which is what training scripts write, ours too: nobody would draw with it in a request's few steps."""
    if config is None or config.get("_class_name") == "DDPMScheduler":
        return None
    try:
        return read_scheduler(config, pipeline)
    except ConfigError as err:
        return str(err)


def _with_fields(made: ModelSampler, said: Mapping[str, Any]) -> ModelSampler:
    """The class' sampler with what a file says."""
    spacing = said.get("timestep_spacing", made.spacing)
    if spacing not in (*SPACINGS, "distilled"):
        raise ConfigError("timestep_spacing", spacing, f"must be {', '.join(SPACINGS)}")
    curve = next((grid for switch, grid in CURVES.items() if said.get(switch)), None)
    options = dict(made.options)
    offset = whole(said, "steps_offset", 0)
    if not 0 <= offset <= TIMESTEPS.most:
        raise ConfigError("steps_offset", offset, "must be at least 0, and less than the training timesteps")
    if made.sampler in ("unipc_bh2", "deis_log_rho"):
        options["order"] = said["solver_order"]
    in_sigma = made.counting == "fractions"
    return replace(
        made,
        sampler="unipc" if said.get("solver_type") == "bh1" else made.sampler,
        options=options,
        spacing=spacing,
        offset=offset,
        original_steps=whole(said, "original_inference_steps", made.original_steps),
        curve=curve,
        sigma_min=_ends_above_zero(made, said),
        start="sigma" if in_sigma and spacing != "leading" else "variance",
        timestep_map=made.timestep_map if curve == "karras" else "interpolated",
    )


def _ends_above_zero(made: ModelSampler, said: Mapping[str, Any]) -> bool:
    if made.sampler in ("deis_log_rho", "tcd"):
        return True
    return not said.get("set_alpha_to_one", True) or said.get("final_sigmas_type", "zero") == "sigma_min"
