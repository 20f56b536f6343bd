"""ComfyUI's engine and diffusers' folders beside undertow: writes docs/results/peers.md.

    python -m benchmarks.peers --comfyui FOLDER

FOLDER is a checkout of ComfyUI; nothing of it is kept. What it imports beside its samplers (model management, hooks) is
left out, so that PyTorch and what undertow needs are enough. Without it that part keeps what the page says.
"""

import argparse
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from tests.golden.conftest import largest_difference
from tests.golden.folders import FOLDERS, draw_ours, draw_theirs
from tests.golden.sampler_peers import ESTIMATE
from undertow.diffusion import FlowSchedule, NoiseSchedule, sigma_grid
from undertow.diffusion.paths import starting_noise
from undertow.diffusion.schedules import Schedule
from undertow.sampling import ALIASES, SAMPLERS, NoiseSource, answered, start_sampler
from undertow.sampling.names import read_names
from undertow.schedulers.levels import COMFYUI_ZERO_SNR_ALPHA_CUMPROD

PAGE = Path("docs/results/peers.md")
SEEDS, STEPS, SHAPE = [3, 4], (4, 10, 20), (3, 4)
START = "## ComfyUI"

LEFT_OUT = (
    "model_management",
    "sampler_helpers",
    "patcher_extension",
    "hooks",
    "context_windows",
    "utils",
    "ldm.util",
)
"""Modules of ComfyUI that its samplers import and do not call here."""

IN_FLOAT32 = ("uni_pc", "uni_pc_bh2")
ONE_PICTURE = ("dpm_adaptive",)
"""Whose steps follow the error of the whole batch there."""

HEAD = """# Beside the peers

Written by `python -m benchmarks.peers --comfyui FOLDER`, where FOLDER is a checkout of ComfyUI.

## diffusers' folders

A tiny random pipeline with each scheduler_config.json, drawn by diffusers {version} and by undertow with
`sampler="model"` and no other option (`tests/golden/test_model_sampler.py` holds them): the largest difference of a
latent relative to the largest, and of a pixel in levels of 255. **dpmpp_2m, karras**: the same of the default for
models that name no sampler, which such folders were drawn with before. A random network smooths its pictures:
differences in latents tell more.

| folder | scheduler | steps | latents | levels | dpmpp_2m, karras: latents | levels |
|---|---|---|---|---|---|---|
"""

TOLD = """
Not known here, so that the default draws and says so: PNDMScheduler with Runge-Kutta's first steps, with v prediction
or with another spacing than leading; DPMSolverMultistepScheduler of order 3, of kind sde or with Lu's lambdas;
DPMSolverSinglestepScheduler, KDPM2AncestralDiscreteScheduler, DPMSolverSDEScheduler and SASolverScheduler; and ends of
sigma that a scheduler has of its own. DDPMScheduler is what training scripts write: it names no sampler.

"""

COMFY = """## ComfyUI

ComfyUI {version}: its own samplers, schedulers, noise and levels (`comfy/samplers.py`, `comfy/model_sampling.py`)
beside undertow's by the same two names (`tool="ComfyUI"`) with `noise_convention="comfy"`. Shown is the largest
difference at the end of a run, relative to the largest value, over all of its schedulers with 4, 10 and 20 steps, in
float64 with equal noise. **SD**: Stable Diffusion's levels, **zero SNR**: with zero terminal SNR, **flow**: with
shift 3.

* ComfyUI's levels are float32. Brownian noise (sde) is compared between nearly equal levels, which alone makes 1e-3; on
  the flow path it lies over other levels and is not compared. uni_pc runs in float32 there, and its deis sums 10,000
  points.
* Other on purpose: dpmpp_2s_ancestral_cfg_pp (see its docstring); uni_pc and uni_pc_bh2, which end at sigma 0.001
  there; and on the flow path ancestral samplers, where ComfyUI divides sigma into what is kept and what is fresh, and
  undertow its ratio to the data, and samplers for which ComfyUI has no form of its own there, which undertow walks in
  that ratio.
* On linear_quadratic with 10 steps multistep methods of high order extrapolate from tiny steps over large ones: ipndm_v
  and uni_pc make 0.06 and 0.3 of what float32 rounds there; elsewhere they are below 3e-7 and 4e-3.
* With zero SNR the levels of kl_optimal are tangents near a right angle, in float32 there: that alone makes 2e-2 of
  euler's run (1e-4 without that scheduler), and more where steps amplify it (heun, dpm_2). From so high a level deis'
  sums are coarse, and the steps of dpm_adaptive follow its rounding.
* sa_solver on the flow path: where a level lies on an end of its window, as with simple and 10 steps, float32 decides
  in ComfyUI whether it has noise; here it has. With 4 steps they are within 1e-7.
* The web UI's prompt parser was not run again: its repository could not be fetched for this page.

| sampler | undertow's | SD | zero SNR | flow |
|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path)
    folder = parser.parse_args().comfyui
    kept = PAGE.read_text() if PAGE.is_file() else ""
    comfy = kept[kept.index(START) :] if folder is None and START in kept else comfyui_part(folder)
    with torch.no_grad():
        page = diffusers_part() + TOLD + comfy
    PAGE.write_text(page)


def diffusers_part() -> str:
    rows: list[str] = []
    for name, folder in FOLDERS.items():
        expected = draw_theirs(folder)
        cells: list[str] = []
        for settings in ({}, {"sampler": "dpmpp_2m", "schedule": "karras"}):
            _, found = draw_ours(folder, **settings)
            cells.append(f"{largest_difference(found.latents, expected.latents):.0e}")
            cells.append(str(np.abs(found.pixels - expected.pixels).max()))
        rows.append(f"| {name} | {folder.name} | {folder.steps} | {' | '.join(cells)} |")
    return HEAD.format(version=import_module("diffusers").__version__) + "\n".join(rows) + "\n"


def comfyui_part(folder: Path) -> str:
    samplers = load(folder)
    version = re.search(r'"(.+)"', (folder / "comfyui_version.py").read_text())
    assert version is not None
    stable = NoiseSchedule.scaled_linear()
    zero = NoiseSchedule(betas=stable.betas, zero_terminal_snr=True, last_alpha_cumprod=COMFYUI_ZERO_SNR_ALPHA_CUMPROD)
    kinds = {"sd": stable, "zero": zero, "flow": FlowSchedule(shift=3.0)}
    rows: list[str] = []
    for name in samplers.SAMPLER_NAMES:
        cells = (worst(samplers, name, kind, schedule) for kind, schedule in kinds.items())
        rows.append(f"| {name} | {ALIASES['ComfyUI'][name]} | {' | '.join(cells)} |")
    return COMFY.format(version=version[1]) + "\n".join(rows) + "\n"


def load(folder: Path) -> Any:
    """comfy/samplers.py with stand-ins for what is no part of sampling."""
    sys.path.insert(0, str(folder))
    package = import_module("comfy")
    for name in LEFT_OUT:
        sys.modules[f"comfy.{name}"] = MagicMock()
    patcher = SimpleNamespace(set_model_options_post_cfg_function=lambda options, after, **_: {"after": after})
    sys.modules["comfy.model_patcher"] = package.model_patcher = patcher  # type: ignore[assignment]
    sys.modules.setdefault("einops", MagicMock())
    return import_module("comfy.samplers")


def worst(samplers: Any, name: str, kind: str, schedule: Schedule) -> str:
    """Over ComfyUI's schedulers and numbers of steps."""
    ours = ALIASES["ComfyUI"][name]
    if kind == "flow" and ("sde" in name or not isinstance(schedule.path, SAMPLERS[ours].paths)) and name != "er_sde":
        return ""
    differences = [
        difference(samplers, name, levels(kind), schedule, scheduler, steps)
        for scheduler in samplers.SCHEDULER_NAMES
        for steps in STEPS
    ]
    return f"{max(differences):.0e}"


def levels(kind: str) -> Any:
    """ComfyUI's object for the levels of a model."""
    sampling = import_module("comfy.model_sampling")
    mixed = {"flow": (sampling.ModelSamplingDiscreteFlow, sampling.CONST)}
    base, prediction = mixed.get(kind, (sampling.ModelSamplingDiscrete, sampling.EPS))
    made = (
        type("Levels", (base, prediction), {})()
        if kind != "zero"
        else type("Levels", (base, prediction), {})(zsnr=True)
    )
    if kind == "flow":
        made.set_parameters(shift=3.0)
    return made


def difference(samplers: Any, name: str, theirs: Any, schedule: Schedule, scheduler: str, steps: int) -> float:
    model = SimpleNamespace(get_model_object=lambda _: theirs)
    sampler = samplers.KSampler(model, steps, "cpu", name, scheduler)
    expected = run_theirs(samplers, name, theirs, sampler.sigmas)
    ours, grid = read_names(name, scheduler, tool="ComfyUI")
    assert grid is not None
    sigmas = sigma_grid(grid, schedule, steps, discard_penultimate=SAMPLERS[ours].discards_penultimate)
    seeds = SEEDS[:1] if name in ONE_PICTURE else SEEDS
    return ((run_ours(ours, schedule, sigmas, seeds) - expected).abs().max() / expected.abs().max()).item()


def run_theirs(samplers: Any, name: str, levels: Any, sigmas: Tensor) -> Tensor:
    source = NoiseSource(SEEDS[:1] if name in ONE_PICTURE else SEEDS)
    dtype = torch.float32 if name in IN_FLOAT32 else torch.float64
    first = source.draw(SHAPE).to(dtype)
    sampling = import_module("comfy.k_diffusion.sampling")
    path = source.brownian(first, sigmas.tolist())

    def brownian(x: Tensor, *_: Any, **__: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda sigma, target: path.between(float(sigma), float(target), x)

    sampling.default_noise_sampler = lambda x, **_: lambda sigma, target: source.like(x)
    sampling.BrownianTreeNoiseSampler = brownian
    patcher = SimpleNamespace(get_model_object=lambda _: levels)

    def model(x: Tensor, sigma: Tensor, model_options: dict[str, Any] | None = None, **_: Any) -> Tensor:
        estimate = ESTIMATE(x, float(sigma[0]))
        if model_options and "after" in model_options:
            model_options["after"]({"denoised": estimate.denoised, "uncond_denoised": estimate.unconditional})
        return estimate.denoised

    model.inner_model = SimpleNamespace(model_sampling=levels)  # type: ignore[attr-defined]
    model.model_patcher = patcher  # type: ignore[attr-defined]
    options: dict[str, Any] = {"model_options": {}, "seed": 0}
    sampler = samplers.sampler_object(name)
    return sampler.sample(model, sigmas.to(dtype), options, None, first, torch.zeros_like(first), None, True)


def run_ours(name: str, schedule: Schedule, sigmas: list[float], seeds: list[int]) -> Tensor:
    source = NoiseSource(seeds)
    highest = sigmas[0] > schedule.sigma_max * (1 - 1e-5)
    x = starting_noise(schedule.path, source.draw(SHAPE).double(), sigmas[0], "variance" if highest else "sigma")
    sampler = start_sampler(name, x, sigmas, path=schedule.path, noise=source, schedule=schedule)
    call = next(sampler)
    while True:
        try:
            call = sampler.send(answered(call, ESTIMATE(call.x, call.sigma)))  # type: ignore[arg-type]
        except StopIteration as finished:
            return finished.value


if __name__ == "__main__":
    main()
