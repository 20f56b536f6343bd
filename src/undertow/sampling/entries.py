"""The samplers, family by family, with their names in other tools.

Names of ComfyUI are those of its KSampler, names of A1111 (and Forge) those of its menu, names of diffusers its
classes, with the options that select the algorithm.
"""

from undertow.diffusion.paths import RectifiedFlow, VarianceExploding
from undertow.sampling.adams import ipndm, ipndm_v, lms, pndm
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
from undertow.sampling.dpm_adaptive import dpm_adaptive
from undertow.sampling.dpm_fast import dpm_fast
from undertow.sampling.dpm_solver import dpmpp_2m, dpmpp_2s, dpmpp_2s_a, dpmpp_3m
from undertow.sampling.dpm_solver_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from undertow.sampling.entry import DIFFUSION, SamplerEntry
from undertow.sampling.er_sde import er_sde
from undertow.sampling.euler import euler, euler_a
from undertow.sampling.gradient_estimation import gradient_estimation
from undertow.sampling.heun import heun, heunpp2
from undertow.sampling.protocol import SamplerFunction
from undertow.sampling.res_multistep import res_multistep, res_multistep_a
from undertow.sampling.restart import restart
from undertow.sampling.sa_solver import sa_solver, sa_solver_pece
from undertow.sampling.seeds import seeds_2, seeds_3
from undertow.sampling.unipc import unipc, unipc_bh2


def _names(comfyui: str = "", a1111: str = "", diffusers: str = "") -> dict[str, tuple[str, ...]]:
    """Aliases by tool, each written with commas between."""
    given = {"ComfyUI": comfyui, "A1111": a1111, "diffusers": diffusers}
    return {tool: tuple(name.strip() for name in names.split(",")) for tool, names in given.items() if names}


def _flow(function: SamplerFunction, order: int, evaluations: int, diffusers: str) -> SamplerEntry:
    """The field's name for an algorithm on the flow path alone."""
    return SamplerEntry(
        function=function,
        order=order,
        evaluations=evaluations,
        paths=(RectifiedFlow,),
        native_flow=True,
        aliases=_names(diffusers=diffusers),
    )


ONE_STEP = {
    "ddpm": SamplerEntry(
        function=ddpm, order=1, stochastic=True, aliases=_names("ddpm", "DDPM", "DDPMScheduler, DDPMParallelScheduler")
    ),
    "ddim": SamplerEntry(
        function=ddim, order=1, aliases=_names("ddim", "DDIM", "DDIMScheduler, DDIMParallelScheduler")
    ),
    "ddim_inverse": SamplerEntry(
        function=ddim_inverse, order=1, paths=DIFFUSION, inverse=True, aliases=_names(diffusers="DDIMInverseScheduler")
    ),
    "euler": SamplerEntry(
        function=euler, order=1, native_flow=True, aliases=_names("euler", "Euler", "EulerDiscreteScheduler")
    ),
    "euler_a": SamplerEntry(
        function=euler_a,
        order=1,
        stochastic=True,
        aliases=_names("euler_ancestral", "Euler a", "EulerAncestralDiscreteScheduler"),
    ),
    "heun": SamplerEntry(
        function=heun, order=2, evaluations=2, native_flow=True, aliases=_names("heun", "Heun", "HeunDiscreteScheduler")
    ),
    "heunpp2": SamplerEntry(
        function=heunpp2, order=1, evaluations=3, native_flow=True, aliases=_names("heunpp2", "HeunPP2")
    ),
    "dpm2": SamplerEntry(
        function=dpm2,
        order=2,
        evaluations=2,
        native_flow=True,
        discards_penultimate=True,
        aliases=_names("dpm_2", "DPM2", "KDPM2DiscreteScheduler"),
    ),
    "dpm2_a": SamplerEntry(
        function=dpm2_a,
        order=2,
        evaluations=2,
        stochastic=True,
        discards_penultimate=True,
        aliases=_names("dpm_2_ancestral", "DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    ),
    "restart": SamplerEntry(function=restart, order=2, evaluations=2, stochastic=True, aliases=_names(a1111="Restart")),
    "dpm_fast": SamplerEntry(function=dpm_fast, order=3, aliases=_names("dpm_fast", "DPM fast")),
    "dpm_adaptive": SamplerEntry(
        function=dpm_adaptive, order=3, evaluations=None, aliases=_names("dpm_adaptive", "DPM adaptive")
    ),
}

MULTISTEP = {
    "lms": SamplerEntry(function=lms, order=4, native_flow=True, aliases=_names("lms", "LMS", "LMSDiscreteScheduler")),
    "pndm": SamplerEntry(function=pndm, order=2, native_flow=True, aliases=_names("", "PLMS", "PNDMScheduler")),
    "ipndm": SamplerEntry(
        function=ipndm, order=2, native_flow=True, aliases=_names("ipndm", "IPNDM", "IPNDMScheduler")
    ),
    "ipndm_v": SamplerEntry(function=ipndm_v, order=2, native_flow=True, aliases=_names("ipndm_v", "IPNDM_V")),
    "deis": SamplerEntry(function=deis, order=3, aliases=_names("deis", "DEIS")),
    "deis_log_rho": SamplerEntry(function=deis_log_rho, order=2, aliases=_names(diffusers="DEISMultistepScheduler")),
    "unipc": SamplerEntry(
        function=unipc,
        order=4,
        discards_penultimate=True,
        aliases=_names("uni_pc", "UniPC", "UniPCMultistepScheduler(solver_type=bh1)"),
    ),
    "unipc_bh2": SamplerEntry(
        function=unipc_bh2,
        order=4,
        discards_penultimate=True,
        aliases=_names("uni_pc_bh2", "", "UniPCMultistepScheduler"),
    ),
    "res_multistep": SamplerEntry(function=res_multistep, order=2, aliases=_names("res_multistep")),
    "res_multistep_a": SamplerEntry(
        function=res_multistep_a, order=2, stochastic=True, aliases=_names("res_multistep_ancestral")
    ),
    "gradient_estimation": SamplerEntry(
        function=gradient_estimation, order=1, native_flow=True, aliases=_names("gradient_estimation")
    ),
}

DPM_SOLVER = {
    "dpmpp_2s": SamplerEntry(
        function=dpmpp_2s,
        order=2,
        evaluations=2,
        aliases=_names(diffusers="DPMSolverSinglestepScheduler"),
    ),
    "dpmpp_2s_a": SamplerEntry(
        function=dpmpp_2s_a,
        order=2,
        evaluations=2,
        stochastic=True,
        aliases=_names("dpmpp_2s_ancestral", "DPM++ 2S a"),
    ),
    "dpmpp_2m": SamplerEntry(
        function=dpmpp_2m,
        order=2,
        native_flow=True,
        aliases=_names("dpmpp_2m", "DPM++ 2M", "DPMSolverMultistepScheduler"),
    ),
    "dpmpp_3m": SamplerEntry(
        function=dpmpp_3m, order=2, aliases=_names(diffusers="DPMSolverMultistepScheduler(solver_order=3)")
    ),
    "dpmpp_sde": SamplerEntry(
        function=dpmpp_sde,
        order=2,
        evaluations=2,
        stochastic=True,
        aliases=_names("dpmpp_sde, dpmpp_sde_gpu", "DPM++ SDE", "DPMSolverSDEScheduler"),
    ),
    "dpmpp_2m_sde": SamplerEntry(
        function=dpmpp_2m_sde,
        order=2,
        stochastic=True,
        aliases=_names(
            "dpmpp_2m_sde, dpmpp_2m_sde_gpu",
            "DPM++ 2M SDE",
            "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++)",
        ),
    ),
    "dpmpp_2m_sde_heun": SamplerEntry(
        function=dpmpp_2m_sde_heun,
        order=2,
        stochastic=True,
        aliases=_names(
            "dpmpp_2m_sde_heun, dpmpp_2m_sde_heun_gpu",
            "DPM++ 2M SDE Heun",
            "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++; solver_type=heun)",
        ),
    ),
    "dpmpp_3m_sde": SamplerEntry(
        function=dpmpp_3m_sde,
        order=2,
        stochastic=True,
        aliases=_names("dpmpp_3m_sde, dpmpp_3m_sde_gpu", "DPM++ 3M SDE"),
    ),
}

STOCHASTIC = {
    "er_sde": SamplerEntry(function=er_sde, order=3, stochastic=True, aliases=_names("er_sde")),
    "seeds_2": SamplerEntry(function=seeds_2, order=2, evaluations=2, stochastic=True, aliases=_names("seeds_2")),
    "seeds_3": SamplerEntry(function=seeds_3, order=3, evaluations=3, stochastic=True, aliases=_names("seeds_3")),
    "sa_solver": SamplerEntry(
        function=sa_solver, order=4, stochastic=True, aliases=_names("sa_solver", "", "SASolverScheduler")
    ),
    "sa_solver_pece": SamplerEntry(
        function=sa_solver_pece, order=4, evaluations=2, stochastic=True, aliases=_names("sa_solver_pece")
    ),
    "lcm": SamplerEntry(function=lcm, order=None, stochastic=True, aliases=_names("lcm", "LCM", "LCMScheduler")),
    "tcd": SamplerEntry(
        function=tcd, order=None, stochastic=True, paths=DIFFUSION, aliases=_names(diffusers="TCDScheduler")
    ),
}

CFG_PP = {
    "euler_cfg_pp": SamplerEntry(
        function=euler_cfg_pp, order=1, guided=True, aliases=_names("euler_cfg_pp", "DDIM CFG++")
    ),
    "euler_a_cfg_pp": SamplerEntry(
        function=euler_a_cfg_pp, order=1, stochastic=True, guided=True, aliases=_names("euler_ancestral_cfg_pp")
    ),
    "dpmpp_2s_a_cfg_pp": SamplerEntry(
        function=dpmpp_2s_a_cfg_pp,
        order=2,
        evaluations=2,
        stochastic=True,
        guided=True,
        aliases=_names("dpmpp_2s_ancestral_cfg_pp"),
    ),
    "dpmpp_2m_cfg_pp": SamplerEntry(function=dpmpp_2m_cfg_pp, order=2, guided=True, aliases=_names("dpmpp_2m_cfg_pp")),
    "res_multistep_cfg_pp": SamplerEntry(
        function=res_multistep_cfg_pp, order=2, guided=True, aliases=_names("res_multistep_cfg_pp")
    ),
    "res_multistep_a_cfg_pp": SamplerEntry(
        function=res_multistep_a_cfg_pp,
        order=2,
        stochastic=True,
        guided=True,
        aliases=_names("res_multistep_ancestral_cfg_pp"),
    ),
    "gradient_estimation_cfg_pp": SamplerEntry(
        function=gradient_estimation_cfg_pp, order=1, guided=True, aliases=_names("gradient_estimation_cfg_pp")
    ),
}

ONE_PATH = {
    "edm_euler": SamplerEntry(
        function=euler, order=1, paths=(VarianceExploding,), aliases=_names(diffusers="EDMEulerScheduler")
    ),
    "edm_dpmpp_2m": SamplerEntry(
        function=dpmpp_2m,
        order=2,
        paths=(VarianceExploding,),
        aliases=_names(diffusers="EDMDPMSolverMultistepScheduler"),
    ),
    "flow_euler": _flow(euler, 1, 1, "FlowMatchEulerDiscreteScheduler"),
    "flow_heun": _flow(heun, 2, 2, "FlowMatchHeunDiscreteScheduler"),
}

SAMPLERS: dict[str, SamplerEntry] = {**ONE_STEP, **MULTISTEP, **DPM_SOLVER, **STOCHASTIC, **CFG_PP, **ONE_PATH}
