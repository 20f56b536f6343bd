"""diffusers' scheduler_config.json, as a dict, to and from our own words.

diffusers keeps four things in one scheduler: the schedule the network was trained with, what the network predicts, the
sampling grid and the sampling algorithm. Only the first two belong to the network, and only they are read here; fields
of the other two (timestep_spacing, solver_order, use_karras_sigmas, ...) are the choice of a request, left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

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
from undertow.json_fields import number, text
from undertow.schedulers.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, TabledBetas
from undertow.schedulers.levels import (
    DEFAULTS,
    EDM_CLASSES,
    FLOW_CLASSES,
    DiscreteLevels,
    EDMLevels,
    FlowLevels,
    Levels,
    read_levels,
)

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
        levels = read_levels(config)
        schedule = schedule_of(levels)
        match schedule:
            case FlowSchedule():
                return cls(schedule=schedule, parameterization=Velocity())
            case EDMSchedule():
                return cls(schedule=schedule, parameterization=_edm_prediction(config, schedule))
            case NoiseSchedule():
                said = DEFAULTS[text(config, "_class_name")] | dict(config)
                prediction = text(said, "prediction_type", "epsilon")
                if prediction not in _PREDICTIONS:
                    raise ConfigError("prediction_type", prediction, f"must be one of {', '.join(_PREDICTIONS)}")
                clip = number(said, "clip_sample_range", 1.0) if said.get("clip_sample", False) else None
                return cls(schedule=schedule, parameterization=_PREDICTIONS[prediction], clip=clip)

    def to_diffusers(self) -> dict[str, Any]:
        """A DDPMScheduler's, FlowMatchEulerDiscreteScheduler's or EDMEulerScheduler's config.

        Errors: `ConfigError` for a parameterization that diffusers has no word for.
        """
        match self.schedule:
            case FlowSchedule(shift=shift, steps=steps):
                if self.parameterization != Velocity():
                    raise ConfigError("parameterization", self.parameterization, "must be Velocity on a FlowSchedule")
                return {"_class_name": FLOW_CLASSES[0], "num_train_timesteps": steps, "shift": shift}
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


def schedule_of(levels: Levels) -> Schedule:
    """With its tables. Errors: `ConfigError` for levels that cannot be."""
    given = {field.name: getattr(levels, field.name) for field in fields(levels)}
    match levels:
        case DiscreteLevels():
            return NoiseSchedule(**given)
        case FlowLevels():
            return FlowSchedule(**given)
        case EDMLevels():
            return EDMSchedule(**given)


def _edm_prediction(config: Mapping[str, Any], schedule: EDMSchedule) -> EDMPrediction:
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigError("prediction_type", prediction, "must be epsilon or v_prediction")
    return EDMPrediction(path=schedule.path, v=prediction == "v_prediction")


def _write_edm(schedule: EDMSchedule, parameterization: Parameterization) -> dict[str, Any]:
    if not isinstance(parameterization, EDMPrediction):
        raise ConfigError("parameterization", parameterization, "must be EDMPrediction on an EDMSchedule")
    return {
        "_class_name": EDM_CLASSES[0],
        "num_train_timesteps": schedule.steps,
        "sigma_min": schedule.sigma_min,
        "sigma_max": schedule.sigma_max,
        "sigma_data": schedule.sigma_data,
        "prediction_type": "v_prediction" if parameterization.v else "epsilon",
    }


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
