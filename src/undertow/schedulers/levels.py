"""The levels of noise that a network was trained on, as scheduler_config.json says them. `diffusion.schedules` gives
the tables; what a request is refused by, how many there are and the highest, is known here. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.errors import ConfigError
from undertow.json_fields import number, numbers, text, whole
from undertow.known_names import PathName
from undertow.limits import TIMESTEPS
from undertow.schedulers.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, TabledBetas

# With zero terminal SNR the last sigma is infinite, and a sampler needs a number: diffusers' Euler takes this abar,
# the smallest subnormal of float16, hence sigma = 4096; ComfyUI takes another, hence 4518.76.
ZERO_SNR_ALPHA_CUMPROD = 2.0**-24
COMFYUI_ZERO_SNR_ALPHA_CUMPROD = 4.8973451890853435e-08


def require_trained_steps(steps: int) -> None:
    """Errors: `ConfigError` for a number of training timesteps that no network has."""
    if steps < 2:
        raise ConfigError("schedule.steps", steps, "must be at least 2 training timesteps")
    if steps > TIMESTEPS.most:
        raise ConfigError("schedule.steps", steps, TIMESTEPS.rule)


@dataclass(frozen=True, kw_only=True)
class DiscreteLevels:
    """Of `diffusion.NoiseSchedule`. Errors: `ConfigError`."""

    betas: Betas
    steps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self):
        require_trained_steps(self.steps)
        self.betas.require(self.steps)

    @property
    def path(self) -> PathName:
        return "VariancePreserving"

    def highest(self, *, comfyui: bool = False) -> float:
        """The largest sigma that a request may ask for. comfyui: with its stand-in for an infinite one."""
        least = COMFYUI_ZERO_SNR_ALPHA_CUMPROD if comfyui else ZERO_SNR_ALPHA_CUMPROD
        kept = 0.0 if self.zero_terminal_snr else self.betas.last_alpha_cumprod(self.steps)
        kept = max(kept, least)
        return math.sqrt((1 - kept) / kept)


@dataclass(frozen=True, kw_only=True)
class FlowLevels:
    """Of `diffusion.FlowSchedule`."""

    shift: float = 1.0
    steps: int = 1000

    @property
    def path(self) -> PathName:
        return "RectifiedFlow"

    def highest(self, *, comfyui: bool = False) -> float:
        """1: pure noise."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class EDMLevels:
    """Of `diffusion.EDMSchedule`."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    steps: int = 1000

    @property
    def path(self) -> PathName:
        return "VarianceExploding"

    def highest(self, *, comfyui: bool = False) -> float:
        """The largest trained sigma."""
        return self.sigma_max


@dataclass(frozen=True, kw_only=True)
class CarriedLevels:
    """Of a file that carries a table of its own, of which nothing but its header was read."""

    steps: int = 1000

    @property
    def path(self) -> PathName:
        return "VariancePreserving"

    def highest(self, *, comfyui: bool = False) -> None:
        """Not known."""


Levels = DiscreteLevels | FlowLevels | EDMLevels

FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

_DDPM = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
_HEUN = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}

# What each class takes for a field that its file leaves out (diffusers 0.42). All know the same discrete schedules.
DEFAULTS: dict[str, dict[str, Any]] = {
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


def read_levels(config: Mapping[str, Any]) -> Levels:
    """Of a scheduler_config.json. Errors: `ConfigError` names the field that we do not know or cannot honor."""
    name = text(config, "_class_name", "")
    if name in FLOW_CLASSES:
        _require_honored(config, _FLOW_HONORED)
        return FlowLevels(shift=number(config, "shift", 1.0), steps=whole(config, "num_train_timesteps", 1000))
    if name in EDM_CLASSES:
        return EDMLevels(
            sigma_min=number(config, "sigma_min", 0.002),
            sigma_max=number(config, "sigma_max", 80.0),
            sigma_data=number(config, "sigma_data", 0.5),
            steps=whole(config, "num_train_timesteps", 1000),
        )
    if name not in DEFAULTS:
        known = ", ".join((*DEFAULTS, *FLOW_CLASSES, *EDM_CLASSES))
        raise ConfigError("_class_name", name, f"must be one of {known}")
    _require_honored(config, _VP_HONORED)
    said = DEFAULTS[name] | dict(config)
    return DiscreteLevels(
        betas=_read_betas(said),
        steps=whole(said, "num_train_timesteps", 1000),
        zero_terminal_snr=bool(said.get("rescale_betas_zero_snr", False)),
    )


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


def _require_honored(config: Mapping[str, Any], honored: Mapping[str, tuple[object, ...]]) -> None:
    for field, values in honored.items():
        if field in config and config[field] not in values:
            names = " or ".join(repr(value) for value in values)
            raise ConfigError(field, config[field], f"changes what the network means, and only {names} is supported")
