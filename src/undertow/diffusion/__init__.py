"""The mathematics of diffusion: paths, schedules, parameterizations, the denoiser, guidance and sampling grids.

Torch only: nothing here knows a U-Net, a file or a sampler. Start at `paths`, then `parameterizations` and `denoiser`.
"""

from undertow.diffusion.denoiser import Denoiser
from undertow.diffusion.grids import GRIDS, sigma_grid
from undertow.diffusion.guidance import ClassifierFree, Guidance
from undertow.diffusion.parameterizations import (
    PARAMETERIZATIONS,
    EDMPrediction,
    Epsilon,
    Parameterization,
    Velocity,
    VPrediction,
    XPrediction,
    find_parameterization,
)
from undertow.diffusion.paths import Path, RectifiedFlow, VarianceExploding, VariancePreserving, snr
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.diffusion.schedules import EDMSchedule, FlowSchedule, NoiseSchedule, Schedule
from undertow.diffusion.strength import truncate
from undertow.known_names import GRID_ALIASES, TimestepMap
from undertow.step_counts import require_grid

__all__ = [
    "GRIDS",
    "GRID_ALIASES",
    "PARAMETERIZATIONS",
    "ClassifierFree",
    "Denoiser",
    "EDMPrediction",
    "EDMSchedule",
    "Epsilon",
    "FlowSchedule",
    "Guidance",
    "NoiseSchedule",
    "Parameterization",
    "Path",
    "RectifiedFlow",
    "Schedule",
    "SchedulerConfig",
    "TimestepMap",
    "VPrediction",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "XPrediction",
    "find_parameterization",
    "require_grid",
    "sigma_grid",
    "snr",
    "truncate",
]
