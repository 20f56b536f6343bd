"""diffusers' scheduler_config.json, as a dict, to and from our own words.

diffusers keeps four things in one scheduler: the schedule the network was trained with, what the network predicts, the
sampling grid and the sampling algorithm. Only the first two belong to the network, and only they are read here; fields
of the other two (timestep_spacing, solver_order, use_karras_sigmas, ...) are the choice of a request, left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.diffusion.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, TabledBetas
from undertow.diffusion.parameterizations import (
    EDMPrediction,
    Epsilon,
    Parameterization,
    Velocity,
    VPrediction,
    XPrediction,
)
from undertow.diffusion.paths import VariancePreserving
from undertow.diffusion.schedules import EDMSchedule, FlowSchedule, NoiseSchedule, Schedule
from undertow.errors import ConfigError
from undertow.json_fields import number, numbers, text, whole

_FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

_EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

_DDPM = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
_HEUN = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}

# What each class takes for a field that its file leaves out (diffusers 0.42). All know the same discrete schedules.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _DDPM | {"clip_sample": True},
    "DDIMScheduler": _DDPM | {"clip_sample": True},
    "PNDMScheduler": _DDPM,
    "LMSDiscreteScheduler": _DDPM,
    "EulerDiscreteScheduler": _DDPM,
    "EulerAncestralDiscreteScheduler": _DDPM,
    "DPMSolverMultistepScheduler": _DDPM,
    "DPMSolverSinglestepScheduler": _DDPM,
    "UniPCMultistepScheduler": _DDPM,
    "DEISMultistepScheduler": _DDPM,
    "HeunDiscreteScheduler": _HEUN,
    "KDPM2DiscreteScheduler": _HEUN,
    "KDPM2AncestralDiscreteScheduler": _HEUN,
    "LCMScheduler": _HEUN | {"beta_schedule": "scaled_linear"},
    "TCDScheduler": _HEUN | {"beta_schedule": "scaled_linear"},
    "DDIMParallelScheduler": _DDPM | {"clip_sample": True},
    "DDPMParallelScheduler": _DDPM | {"clip_sample": True},
    "SASolverScheduler": _DDPM,
    "DPMSolverSDEScheduler": _HEUN,
}

# Fields that change what time or the prediction mean, with the values that we can honor.
_VP_HONORED: dict[str, tuple[object, ...]] = {
    "thresholding": (False, None),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None),
    "timestep_type": ("discrete", None),
    "use_flow_sigmas": (False, None),
}
_FLOW_HONORED: dict[str, tuple[object, ...]] = {
    "use_dynamic_shifting": (False, None),
    "invert_sigmas": (False, None),
    "shift_terminal": (None,),
    "stochastic_sampling": (False, None),
}

_PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": Epsilon(),
    "v_prediction": VPrediction(),
    "sample": XPrediction(),
}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The mathematics a network was trained with. clip: x0 is clamped to +-clip when sampling (pixels), or `None`."""

    schedule: Schedule
    parameterization: Parameterization
    clip: float | None = None

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "SchedulerConfig":
        """Read a scheduler_config.json. Errors: `ConfigError` names the field that we do not know or cannot honor."""
        name = text(config, "_class_name", "")
        if name in _FLOW_CLASSES:
            return cls(schedule=_flow_schedule(config), parameterization=Velocity())
        if name in _EDM_CLASSES:
            return _read_edm(config)
        if name not in _DEFAULTS:
            known = ", ".join((*_DEFAULTS, *_FLOW_CLASSES, *_EDM_CLASSES))
            raise ConfigError("_class_name", name, f"must be one of {known}")
        _require_honored(config, _VP_HONORED)
        config = _DEFAULTS[name] | dict(config)
        prediction = text(config, "prediction_type", "epsilon")
        if prediction not in _PREDICTIONS:
            raise ConfigError("prediction_type", prediction, f"must be one of {', '.join(_PREDICTIONS)}")
        schedule = NoiseSchedule(
            betas=_read_betas(config),
            steps=whole(config, "num_train_timesteps", 1000),
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        )
        clip = number(config, "clip_sample_range", 1.0) if config.get("clip_sample", False) else None
        return cls(schedule=schedule, parameterization=_PREDICTIONS[prediction], clip=clip)

    def to_diffusers(self) -> dict[str, Any]:
        """A DDPMScheduler's, FlowMatchEulerDiscreteScheduler's or EDMEulerScheduler's config.

        Errors: `ConfigError` for a parameterization that diffusers has no word for.
        """
        match self.schedule:
            case FlowSchedule(shift=shift, steps=steps):
                if self.parameterization != Velocity():
                    raise ConfigError("parameterization", self.parameterization, "must be Velocity on a FlowSchedule")
                return {"_class_name": _FLOW_CLASSES[0], "num_train_timesteps": steps, "shift": shift}
            case EDMSchedule():
                return _write_edm(self.schedule, self.parameterization)
            case NoiseSchedule(betas=betas, steps=steps, zero_terminal_snr=rescaled):
                return {
                    "_class_name": "DDPMScheduler",
                    "num_train_timesteps": steps,
                    **_write_betas(betas),
                    "rescale_betas_zero_snr": rescaled,
                    "prediction_type": self._prediction_type(),
                    "clip_sample": self.clip is not None,
                    "clip_sample_range": 1.0 if self.clip is None else self.clip,
                    # The spacing for which diffusers starts at pure noise (arXiv:2305.08891, section 3.3).
                    "timestep_spacing": "trailing" if rescaled else "leading",
                }

    def _prediction_type(self) -> str:
        for name, parameterization in _PREDICTIONS.items():
            if parameterization == self.parameterization:
                return name
        kinds = f"must be Epsilon, VPrediction or XPrediction on the path {VariancePreserving.__name__}"
        raise ConfigError("parameterization", self.parameterization, kinds)


def _flow_schedule(config: Mapping[str, Any]) -> FlowSchedule:
    _require_honored(config, _FLOW_HONORED)
    return FlowSchedule(shift=number(config, "shift", 1.0), steps=whole(config, "num_train_timesteps", 1000))


def _read_edm(config: Mapping[str, Any]) -> SchedulerConfig:
    schedule = EDMSchedule(
        sigma_min=number(config, "sigma_min", 0.002),
        sigma_max=number(config, "sigma_max", 80.0),
        sigma_data=number(config, "sigma_data", 0.5),
        steps=whole(config, "num_train_timesteps", 1000),
    )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigError("prediction_type", prediction, "must be epsilon or v_prediction")
    parameterization = EDMPrediction(path=schedule.path, v=prediction == "v_prediction")
    return SchedulerConfig(schedule=schedule, parameterization=parameterization)


def _write_edm(schedule: EDMSchedule, parameterization: Parameterization) -> dict[str, Any]:
    if not isinstance(parameterization, EDMPrediction):
        raise ConfigError("parameterization", parameterization, "must be EDMPrediction on an EDMSchedule")
    return {
        "_class_name": _EDM_CLASSES[0],
        "num_train_timesteps": schedule.steps,
        "sigma_min": schedule.sigma_min,
        "sigma_max": schedule.sigma_max,
        "sigma_data": schedule.sigma_data,
        "prediction_type": "v_prediction" if parameterization.v else "epsilon",
    }


def _read_betas(config: Mapping[str, Any]) -> Betas:
    if (table := numbers(config, "trained_betas")) is not None:
        return TabledBetas(table)
    start, end = (number(config, field) for field in ("beta_start", "beta_end"))
    match config["beta_schedule"]:
        case "linear":
            return LinearBetas(start=start, end=end)
        case "scaled_linear":
            return ScaledLinearBetas(start=start, end=end)
        case "squaredcos_cap_v2":
            return CosineBetas()
        case unknown:
            raise ConfigError("beta_schedule", unknown, "must be linear, scaled_linear or squaredcos_cap_v2")


def _write_betas(betas: Betas) -> dict[str, Any]:
    match betas:
        case LinearBetas(start=start, end=end):
            return {"beta_schedule": "linear", "beta_start": start, "beta_end": end}
        case ScaledLinearBetas(start=start, end=end):
            return {"beta_schedule": "scaled_linear", "beta_start": start, "beta_end": end}
        case CosineBetas():
            return {"beta_schedule": "squaredcos_cap_v2"}
        case TabledBetas(table=table):
            return {"trained_betas": list(table)}


def _require_honored(config: Mapping[str, Any], honored: Mapping[str, tuple[object, ...]]) -> None:
    for field, values in honored.items():
        if field in config and config[field] not in values:
            names = " or ".join(repr(value) for value in values)
            raise ConfigError(field, config[field], f"changes what the network means, and only {names} is supported")
