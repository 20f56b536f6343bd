"""Samplers by name: the only place where a name becomes an algorithm."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.paths import Path, RectifiedFlow, VarianceExploding
from undertow.diffusion.schedules import Schedule
from undertow.errors import InvalidInput
from undertow.lookup import look_up
from undertow.sampling.adams import ipndm, ipndm_comfyui, ipndm_v, ipndm_v_comfyui, lms, lms_comfyui, pndm
from undertow.sampling.cfg_pp import (
    dpmpp_2m_cfg_pp,
    dpmpp_2s_a_cfg_pp,
    euler_a_cfg_pp,
    euler_cfg_pp,
    gradient_estimation_cfg_pp,
    res_multistep_a_cfg_pp,
    res_multistep_cfg_pp,
)
from undertow.sampling.consistency import lcm, tcd
from undertow.sampling.ddim import ddim, ddim_inverse, ddpm
from undertow.sampling.deis import deis, deis_log_rho
from undertow.sampling.dpm2 import dpm2, dpm2_a
from undertow.sampling.dpm_adaptive import dpm_adaptive, dpm_adaptive_comfyui
from undertow.sampling.dpm_fast import dpm_fast, dpm_fast_comfyui
from undertow.sampling.dpm_solver import dpmpp_2m, dpmpp_2s, dpmpp_2s_a, dpmpp_3m
from undertow.sampling.dpm_solver_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from undertow.sampling.entry import TOOLS, CataloguedSampler, SamplerEntry
from undertow.sampling.er_sde import er_sde
from undertow.sampling.euler import euler, euler_a
from undertow.sampling.flow import along_flow
from undertow.sampling.gradient_estimation import gradient_estimation
from undertow.sampling.heun import heun, heunpp2
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import Sampler
from undertow.sampling.res_multistep import res_multistep, res_multistep_a
from undertow.sampling.restart import restart
from undertow.sampling.sa_solver import sa_solver, sa_solver_pece
from undertow.sampling.seeds import seeds_2, seeds_3
from undertow.sampling.unipc import unipc, unipc_bh2

__all__ = ["ALIASES", "SAMPLERS", "SamplerEntry", "canonical_name", "find_sampler", "start_sampler"]

ALGORITHMS: tuple[CataloguedSampler, ...] = (
    # One step at a time.
    ddpm,
    ddim,
    ddim_inverse,
    euler,
    euler_a,
    heun,
    heunpp2,
    dpm2,
    dpm2_a,
    restart,
    dpm_fast,
    dpm_fast_comfyui,
    dpm_adaptive,
    dpm_adaptive_comfyui,
    # Multistep.
    lms,
    lms_comfyui,
    pndm,
    ipndm,
    ipndm_comfyui,
    ipndm_v,
    ipndm_v_comfyui,
    deis,
    deis_log_rho,
    unipc,
    unipc_bh2,
    res_multistep,
    res_multistep_a,
    gradient_estimation,
    # DPM-Solver++.
    dpmpp_2s,
    dpmpp_2s_a,
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_sde,
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_3m_sde,
    # Stochastic solvers, and samplers of distilled models.
    er_sde,
    seeds_2,
    seeds_3,
    sa_solver,
    sa_solver_pece,
    lcm,
    tcd,
    # CFG++.
    euler_cfg_pp,
    euler_a_cfg_pp,
    dpmpp_2s_a_cfg_pp,
    dpmpp_2m_cfg_pp,
    res_multistep_cfg_pp,
    res_multistep_a_cfg_pp,
    gradient_estimation_cfg_pp,
)
"""Every algorithm, in the order of menus."""

SAMPLERS: dict[str, SamplerEntry] = {
    **{algorithm.__name__: algorithm.entry for algorithm in ALGORITHMS},
    "edm_euler": euler.entry.only_on(VarianceExploding, diffusers="EDMEulerScheduler"),
    "edm_dpmpp_2m": dpmpp_2m.entry.only_on(VarianceExploding, diffusers="EDMDPMSolverMultistepScheduler"),
    "flow_euler": euler.entry.only_on(RectifiedFlow, diffusers="FlowMatchEulerDiscreteScheduler"),
    "flow_heun": heun.entry.only_on(RectifiedFlow, diffusers="FlowMatchHeunDiscreteScheduler"),
}
"""What is known about each sampler, by name."""

ALIASES: dict[str, dict[str, str]] = {
    tool: {alias: name for name, entry in SAMPLERS.items() for alias in entry.aliases.get(tool, ())} for tool in TOOLS
}
"""Names of other tools, tool by tool, and ours for the same algorithm. Where ComfyUI has another algorithm by a name of
ours, ours counts unless the tool is named (`canonical_name`)."""

# A name of ours comes before another tool's.
_ALL_NAMES = {
    **{name: name for name in SAMPLERS},
    **{alias: name for names in ALIASES.values() for alias, name in names.items() if alias not in SAMPLERS},
}


_OFFERED = 5
"""Samplers that a message names."""


def canonical_name(name: str, tool: str | None = None) -> str:
    """Our name for a sampler that may be called as ComfyUI, A1111 or diffusers call it.

    tool: the one whose name it is first of all, before ours. Errors: `InvalidInput` offers the nearest of all names.
    """
    if tool is not None and name in ALIASES[tool]:
        return ALIASES[tool][name]
    return look_up(_ALL_NAMES, name, "sampler", listed_by="undertow samplers")


def find_sampler(name: str, path: Path | None = None) -> SamplerEntry:
    """The entry called `name`, here or in another tool; with `path`, one that runs on it.

    Errors: `InvalidInput` offers the nearest names, or the samplers of this path.
    """
    entry = SAMPLERS[canonical_name(name)]
    if path is not None and not isinstance(path, entry.paths):
        fitting = [other for other, found in SAMPLERS.items() if isinstance(path, found.paths)][:_OFFERED]
        remedy = f"take {', '.join(fitting)} or another that `undertow samplers` lists for it"
        raise InvalidInput("sampler", repr(name), f"one for {type(path).__name__}", remedy)
    return entry


def start_sampler(
    name: str,
    x: Float[Tensor, "batch ..."],
    sigmas: Sequence[float],
    *,
    path: Path,
    noise: NoiseSource | None = None,
    schedule: Schedule | None = None,
    **options: float,
) -> Sampler:
    """A sampler by name, on the path of the network it will ask. schedule: the network's levels, which some options
    mean by default; without it, Stable Diffusion's. Errors: `InvalidInput`, before any evaluation."""
    entry = find_sampler(name, path)
    # Churn is noise beside x0 of full size, whatever sampler it is for.
    if isinstance(path, RectifiedFlow) and (not entry.native_flow or options.get("s_churn", 0) > 0):
        return along_flow(entry.function, x, sigmas, noise=noise, schedule=schedule, **options)
    return entry.function(x, sigmas, noise=noise, path=path, schedule=schedule, **options)
