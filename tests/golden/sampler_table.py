"""Writes docs/results/samplers.md: `python -m tests.golden.sampler_table [--comfyui FOLDER] [--a1111 FILE]`.

FOLDER is a checkout's comfy/k_diffusion, FILE A1111's modules/sd_samplers_extra.py; without them their columns keep
what the page says.
"""

import argparse
import math
import re
from pathlib import Path

from tests.golden.sampler_peers import (
    A1111,
    COMFYUI,
    K_DIFFUSION,
    Peer,
    exists,
    k_diffusion,
    load_restart,
    load_sampling,
    worst_difference,
)
from tests.sampling.problem import error
from tests.sampling.test_order import MEASURED, grid_for
from undertow.diffusion import NoiseSchedule, VariancePreserving, sigma_grid
from undertow.sampling import SAMPLERS, SamplerEntry

PAGE = Path(__file__).parents[2] / "docs/results/samplers.md"

# Tolerance of the test of each, in float32: test_schedulers.py, test_more_schedulers.py and test_sampler_steps.py.
DIFFUSERS = {
    **dict.fromkeys(["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "flow_euler", "flow_heun"], "1e-05"),
    **dict.fromkeys(["edm_euler", "edm_dpmpp_2m", "unipc_bh2", "lcm", "pndm"], "1e-05"),
    **dict.fromkeys(["unipc", "deis_log_rho", "tcd", "ddim_inverse", "sa_solver"], "1e-04"),
    "lms": "2e-04",
}
# Another formula on purpose, see its docstring.
DIFFERENT = ("dpmpp_2s_a_cfg_pp",)

HEAD = """# Samplers

Written by `python -m tests.golden.sampler_table --comfyui FOLDER --a1111 FILE`; `undertow samplers NAME` shows one with
its options.
![The sampling grids](../images/schedules.png)

* **order**: the error shrinks as step^order. **measured**: from halving the step on a problem with a known solution, in
  float64 (`tests/sampling/test_order.py`), where the sampler has a solver of the ordinary equation inside. Multistep
  methods of high order start there with small steps; weights for equal steps (pndm, ipndm, ipndm_v) are measured on
  unequal ones.
* **k-diffusion**, **ComfyUI**, **A1111**: the largest difference of any x at any evaluation of runs with 5 and 12 steps
  (restart: 5, 20 and 40) on two grids, relative to the largest value, in float64 with the same noise
  (`tests/golden/test_k_diffusion.py`). ComfyUI is `comfy/k_diffusion/sampling.py` of 0.3.64, A1111 a fork's
  `modules/sd_samplers_extra.py`; neither is part of the tests. ComfyUI's deis sums 10,000 points where
  ours integrates, and its er_sde keeps the points of its sums in float32; k-diffusion's dpm_fast and dpm_adaptive and
  A1111's restart keep their levels in float32.
* Where ComfyUI ends otherwise under a name of k-diffusion's, a variant ends as ComfyUI: lms_comfyui, ipndm_comfyui and
  ipndm_v_comfyui go to the estimate in the step to 0 (since 2025; with 4 steps of lms that is 12 % of the picture), and
  dpm_fast_comfyui and dpm_adaptive_comfyui leave the noise of sigma_min in x, of which dpm_fast_comfyui makes one
  evaluation more above it. Our own names mean k-diffusion's; ComfyUI's mean these where the tool is named
  (`undertow.sampling.names.read_names(..., tool="ComfyUI")`, and pictures of ComfyUI that are read).
* Also ComfyUI's, for every sampler, with `noise_convention="comfy"` of a request: a start below the highest level is
  sigma times the noise, where ours gives the network's input the variance it was trained with; and the first level of
  zero terminal SNR is 4518.76 in place of diffusers' 4096, which moves every grid that is spaced in sigma.
  `timestep_map="nearest"` and `strength_convention="comfy"` belong to it.
* `sampler="model"` draws as the scheduler_config.json of the model's own folder says, as diffusers does: see
  [peers](peers.md).
* **diffusers**: the difference that the tests allow, in float32 (`tests/golden/test_schedulers.py`,
  `tests/golden/test_more_schedulers.py`, `tests/golden/test_sampler_steps.py`). With equal tables in float64 it is
  below 1e-10 for ddim, euler, euler_a, heun, dpmpp_2m, unipc_bh2, pndm, lcm and sa_solver.
* Not run beside diffusers: dpmpp_2s, dpmpp_3m, dpmpp_sde and ipndm; dpm2 by its pictures (`test_model_sampler.py`).
* dpmpp_2s_a_cfg_pp is not ComfyUI's: see its docstring.
* dpmpp_3m and dpmpp_3m_sde are of second order with the weights that everybody uses; ipndm_v's published weights add up
  to 1 only where steps shrink evenly; heunpp2's weights of later slopes shrink with sigma.

| sampler | order | measured | evaluations | noise | k-diffusion | ComfyUI | A1111 | diffusers | other names |
|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--a1111", type=Path)
    given = parser.parse_args()
    folder, file = given.comfyui, given.a1111
    reference = k_diffusion()
    if reference is None:
        parser.error("k-diffusion is not installed: make installs it")
    beside = {name: worst(reference, name, peer) for name, peer in K_DIFFUSION.items()}
    comfyui = column_of(PAGE.read_text(), "ComfyUI") if folder is None else {}
    a1111 = column_of(PAGE.read_text(), "A1111") if file is None else {}
    if folder is not None:
        module = load_sampling(folder)
        comfyui = {
            name: worst(module, name, peer)
            for name, peer in COMFYUI.items()
            if exists(module, peer) and name not in DIFFERENT
        }
    if file is not None:
        module = load_restart(file, reference)
        a1111 = {name: worst(module, name, peer) for name, peer in A1111.items()}
    rows = [row(name, entry, beside, comfyui, a1111) for name, entry in SAMPLERS.items()]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")


def worst(module, name: str, peer: Peer) -> str:
    schedule = NoiseSchedule.scaled_linear()
    grids = [sigma_grid(grid, schedule, steps) for grid in ("karras", "normal") for steps in peer.steps]
    return f"{max(worst_difference(module, name, peer, sigmas) for sigmas in grids):.0e}"


def column_of(page: str, title: str) -> dict[str, str]:
    """A column as the page has it."""
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if re.match(r"\| \w+ \|", line)]
    place = rows[0].index(title)
    return {cells[1]: cells[place] for cells in rows[1:] if cells[place]}


def row(name: str, entry: SamplerEntry, *columns: dict[str, str]) -> str:
    """columns: of k-diffusion, ComfyUI and A1111."""
    cells = [
        name,
        "-" if entry.order is None else str(entry.order),
        measured(name),
        "its own" if entry.evaluations is None else str(entry.evaluations),
        "yes" if entry.stochastic else "",
        *(column.get(name, "") for column in columns),
        DIFFUSERS.get(name, ""),
        "; ".join(f"{tool}: {', '.join(names)}" for tool, names in entry.aliases.items()),
    ]
    return f"| {' | '.join(cells)} |"


def measured(name: str) -> str:
    if (name, VariancePreserving()) not in MEASURED:
        return ""
    coarse, fine = (80, 320) if name == "dpm_fast" else (160, 320)
    errors = [error(name, VariancePreserving(), steps, grid_for(name)) for steps in (coarse, fine)]
    return f"{math.log(errors[0] / errors[1], fine / coarse):.2f}"


if __name__ == "__main__":
    main()
