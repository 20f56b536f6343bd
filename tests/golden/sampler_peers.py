"""Sampling functions of k-diffusion, and of tools that keep its file, beside ours: every x that a denoiser is asked at.

k-diffusion's package imports trackers, metrics and CLIP; only its `sampling.py` is loaded here, with a stand-in for the
two helpers that it takes from elsewhere.
"""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.sampling.problem import smooth, with_unconditional
from undertow.diffusion import NoiseSchedule
from undertow.diffusion.guidance import Guided
from undertow.sampling import SAMPLERS, NoiseSource, answered

SEEDS = [3, 4]
APART = 0.3
"""How far the unconditional estimate lies from the other."""


def k_diffusion() -> ModuleType | None:
    """k-diffusion's sampling functions, or `None` where it is not installed (make installs it)."""
    found = importlib.util.find_spec("k_diffusion")
    return None if found is None or found.origin is None else load_sampling(Path(found.origin).parent)


def load_sampling(folder: Path) -> ModuleType:
    """`sampling.py` of a folder, as part of a package of its own."""
    package = f"peer_{abs(hash(folder))}"
    utils = ModuleType(f"{package}.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # pyright: ignore[reportAttributeAccessIssue]
    parent = ModuleType(package)
    parent.__path__ = [str(folder)]
    parent.utils = utils  # pyright: ignore[reportAttributeAccessIssue]
    stands_in = {package: parent, utils.__name__: utils, "torchdiffeq": _module("torchdiffeq", odeint=None)}
    patcher = _module("comfy.model_patcher", set_model_options_post_cfg_function=lambda options, f, **_: {"after": f})
    sampling = _module("comfy.model_sampling", CONST=type("CONST", (), {}))
    samplers = _module("comfy.samplers")
    comfy = _module("comfy", model_patcher=patcher, model_sampling=sampling, samplers=samplers)
    stands_in |= {"comfy": comfy, "comfy.model_patcher": patcher, "comfy.model_sampling": sampling}
    stands_in |= {"comfy.samplers": samplers}
    with _modules(stands_in):
        spec = importlib.util.spec_from_file_location(f"{package}.sampling", folder / "sampling.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def _module(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    return module


def load_restart(file: Path, reference: ModuleType) -> ModuleType:
    """A1111's `modules/sd_samplers_extra.py`, on the helpers of k-diffusion's `reference`."""
    helpers = {name: getattr(reference, name) for name in ("to_d", "get_sigmas_karras")}
    sampling = _module("k_diffusion.sampling", torch=torch, **helpers)
    sys.modules |= {"k_diffusion": _module("k_diffusion", sampling=sampling), "k_diffusion.sampling": sampling}
    spec = importlib.util.spec_from_file_location("peer_a1111", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _modules(stands_in: dict[str, ModuleType]) -> Generator[None]:
    before = {name: sys.modules.get(name) for name in stands_in}
    sys.modules.update(stands_in)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@dataclass(kw_only=True)
class Peer:
    """A sampling function and how it is called. ours: options for our sampler."""

    function: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    ours: dict[str, float] = field(default_factory=dict[str, float])
    brownian: bool = False
    ends: bool = False
    """Takes the ends of the grid instead of its levels, and stops at the last above 0."""
    count: bool = False
    """Is told the number of evaluations too."""
    counts_last: bool = False
    """Neither steps to 0, which the number counts: both end at the last level above it."""
    last: bool = True
    """Ends as ours: the last x is compared too."""
    steps: tuple[int, ...] = (5, 12)


K_DIFFUSION = {
    "euler": Peer(function="sample_euler"),
    "euler_a": Peer(function="sample_euler_ancestral"),
    "heun": Peer(function="sample_heun"),
    "dpm2": Peer(function="sample_dpm_2"),
    "dpm2_a": Peer(function="sample_dpm_2_ancestral"),
    "lms": Peer(function="sample_lms"),
    "dpm_fast": Peer(function="sample_dpm_fast", ends=True, count=True),
    "dpm_fast_comfyui": Peer(function="sample_dpm_fast", ends=True, count=True, counts_last=True),
    "dpm_adaptive": Peer(function="sample_dpm_adaptive", ends=True),
    "dpm_adaptive_comfyui": Peer(function="sample_dpm_adaptive", ends=True, counts_last=True),
    "dpmpp_2s": Peer(function="sample_dpmpp_2s_ancestral", options={"eta": 0.0}),
    "dpmpp_2s_a": Peer(function="sample_dpmpp_2s_ancestral"),
    "dpmpp_sde": Peer(function="sample_dpmpp_sde", brownian=True),
    "dpmpp_2m": Peer(function="sample_dpmpp_2m"),
    "dpmpp_2m_sde": Peer(function="sample_dpmpp_2m_sde", brownian=True),
    "dpmpp_2m_sde_heun": Peer(function="sample_dpmpp_2m_sde", options={"solver_type": "heun"}, brownian=True),
    "dpmpp_3m": Peer(function="sample_dpmpp_3m_sde", options={"eta": 0.0}, brownian=True),
    "dpmpp_3m_sde": Peer(function="sample_dpmpp_3m_sde", brownian=True),
}

OPTIONS: dict[str, list[dict[str, float]]] = {
    "euler_a": [{"eta": 0.6, "s_noise": 1.1}],
    "dpm2_a": [{"eta": 0.6, "s_noise": 1.1}],
    "lms": [{"order": 1}, {"order": 3}],
    "dpm_fast": [{"eta": 0.6, "s_noise": 1.1}],
    "dpm_adaptive": [
        {"order": 2, "rtol": 0.03, "atol": 0.02, "h_init": 0.2},
        {"pcoeff": 0.3, "icoeff": 0.7, "dcoeff": 0.1, "accept_safety": 0.9, "h_init": 1.5},
        {"eta": 0.6, "s_noise": 1.1},
    ],
    "dpmpp_2s_a": [{"eta": 0.6, "s_noise": 1.1}],
    "dpmpp_sde": [{"eta": 0.6, "s_noise": 1.1, "r": 0.3}],
    "dpmpp_2m_sde": [{"eta": 0.6, "s_noise": 1.1}],
    "dpmpp_2m_sde_heun": [{"eta": 0.6, "s_noise": 1.1}],
    "dpmpp_3m_sde": [{"eta": 0.6, "s_noise": 1.1}],
}
"""Of samplers in k-diffusion, where the options have the same names."""

COMFYUI = {
    "ddpm": Peer(function="sample_ddpm"),
    "heunpp2": Peer(function="sample_heunpp2"),
    "lms_comfyui": Peer(function="sample_lms"),
    "dpm_fast_comfyui": Peer(function="sample_dpm_fast", ends=True, count=True, counts_last=True),
    "dpm_adaptive_comfyui": Peer(function="sample_dpm_adaptive", ends=True, counts_last=True),
    "ipndm": Peer(function="sample_ipndm", last=False),
    "ipndm_comfyui": Peer(function="sample_ipndm"),
    "ipndm_v": Peer(function="sample_ipndm_v", last=False),
    "ipndm_v_comfyui": Peer(function="sample_ipndm_v"),
    "deis": Peer(function="sample_deis"),
    "euler_cfg_pp": Peer(function="sample_euler_cfg_pp"),
    "euler_a_cfg_pp": Peer(function="sample_euler_ancestral_cfg_pp"),
    "dpmpp_2s_a_cfg_pp": Peer(function="sample_dpmpp_2s_ancestral_cfg_pp"),
    "dpmpp_2m_cfg_pp": Peer(function="sample_dpmpp_2m_cfg_pp"),
    "res_multistep": Peer(function="sample_res_multistep"),
    "res_multistep_a": Peer(function="sample_res_multistep_ancestral"),
    "res_multistep_cfg_pp": Peer(function="sample_res_multistep_cfg_pp"),
    "res_multistep_a_cfg_pp": Peer(function="sample_res_multistep_ancestral_cfg_pp"),
    "gradient_estimation": Peer(function="sample_gradient_estimation"),
    "gradient_estimation_cfg_pp": Peer(function="sample_gradient_estimation_cfg_pp"),
    "er_sde": Peer(function="sample_er_sde"),
    "seeds_2": Peer(function="sample_seeds_2"),
    "seeds_3": Peer(function="sample_seeds_3"),
    "sa_solver": Peer(function="sample_sa_solver"),
    "sa_solver_pece": Peer(function="sample_sa_solver_pece"),
}

A1111 = {"restart": Peer(function="restart_sampler", steps=(5, 20, 40))}

ESTIMATE: Callable[[Tensor, float], Guided] = with_unconditional(smooth, APART)

_LEVELS = SimpleNamespace(percent_to_sigma=lambda percent: NoiseSchedule.scaled_linear().sigma_at_share(1 - percent))
"""What ComfyUI asks of a model's levels: sigma of Stable Diffusion after a share of its timesteps."""

WRAPPED = SimpleNamespace(
    inner_model=SimpleNamespace(model_sampling=_LEVELS),
    model_patcher=SimpleNamespace(get_model_object=lambda _: _LEVELS),
)
"""A model of noise and data, as ComfyUI wraps it."""


def start(sigma: float) -> Tensor:
    """Two images at `sigma`, one at a time for a solver whose steps follow the error of its whole batch."""
    return sigma * NoiseSource([101, 102]).draw((3, 4)).double()


def theirs(module: ModuleType, peer: Peer, x: Tensor, sigmas: list[float], seeds: list[int]) -> list[Tensor]:
    """x at every evaluation, and at the end."""
    points: list[Tensor] = []
    source = NoiseSource(seeds)
    path = source.brownian(x, sigmas) if peer.brownian else None

    def noise(sigma: Tensor, target: Tensor) -> Tensor:
        return source.like(x) if path is None else path.between(float(sigma), float(target), x)

    def model(x: Tensor, sigma: Tensor, model_options: dict[str, Any] | None = None, **_: object) -> Tensor:
        points.append(x)
        estimate = ESTIMATE(x, float(sigma[0]))
        if model_options and "after" in model_options:
            model_options["after"]({"denoised": estimate.denoised, "uncond_denoised": estimate.unconditional})
        return estimate.denoised

    model.inner_model = WRAPPED  # pyright: ignore[reportFunctionMemberAccess]
    function = getattr(module, peer.function)
    options = dict(peer.options)
    if hasattr(module, "k_diffusion"):  # A1111's draws by this name
        module.k_diffusion.sampling.torch = SimpleNamespace(randn_like=source.like)
    if "noise_sampler" in inspect.signature(function).parameters:
        options["noise_sampler"] = noise
    if peer.ends:
        evaluations = (len(sigmas) - 2 + peer.counts_last,) if peer.count else ()
        end = function(model, x, sigmas[-2], sigmas[0], *evaluations, extra_args={}, disable=True, **options)
    else:
        levels = torch.tensor(sigmas, dtype=torch.float64)
        end = function(model, x, levels, extra_args={}, disable=True, **options)
    return [*points, end]


def ours(name: str, peer: Peer, x: Tensor, sigmas: list[float], seeds: list[int]) -> list[Tensor]:
    """The same of ours."""
    sampler = SAMPLERS[name].function(x, sigmas, noise=NoiseSource(seeds), **peer.ours)
    points: list[Tensor] = []
    call = next(sampler)
    while True:
        points.append(call.x)
        try:
            call = sampler.send(answered(call, ESTIMATE(call.x, call.sigma)))  # pyright: ignore[reportArgumentType]
        except StopIteration as finished:
            return points if peer.ends and not peer.counts_last else [*points, finished.value]


def worst_difference(module: ModuleType, name: str, peer: Peer, sigmas: list[float]) -> float:
    """The largest difference of all x, each relative to the largest value of theirs."""
    worst = 0.0
    groups = [slice(0, 1), slice(1, 2)] if name.startswith("dpm_adaptive") else [slice(0, 2)]
    for group in groups:
        x = start(sigmas[0])[group]
        mine = ours(name, peer, x, sigmas, SEEDS[group])
        reference = theirs(module, peer, x, sigmas, SEEDS[group])
        assert len(mine) == len(reference) > 3, (name, len(mine), len(reference))
        compared = slice(None if peer.last else -1)
        for one, other in zip(mine[compared], reference[compared], strict=True):
            difference = ((one - other).abs().max() / other.abs().max()).item()
            assert math.isfinite(difference)
            worst = max(worst, difference)
    return worst


def exists(module: ModuleType, peer: Peer) -> bool:
    """Whether this version of the file has the function."""
    return hasattr(module, peer.function)
