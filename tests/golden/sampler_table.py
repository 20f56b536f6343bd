"""Writes docs/results/samplers.md: `python -m tests.golden.sampler_table [--comfyui FOLDER]`.

FOLDER is a checkout's comfy/k_diffusion; without it the column of ComfyUI keeps what the page says.
"""

import argparse
import math
import re
from pathlib import Path

from tests.golden.sampler_peers import COMFYUI, K_DIFFUSION, Peer, exists, k_diffusion, load_sampling, worst_difference
from tests.sampling.problem import error
from tests.sampling.test_order import MEASURED, grid_for
from undertow.diffusion import NoiseSchedule, VariancePreserving, sigma_grid
from undertow.sampling import SAMPLERS, SamplerEntry

PAGE = Path(__file__).parents[2] / "docs/results/samplers.md"

# Tolerance of the test of each, in float32: tests/golden/test_schedulers.py and test_more_schedulers.py.
DIFFUSERS = {
    **dict.fromkeys(["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "flow_euler", "flow_heun"], "1e-05"),
    **dict.fromkeys(["edm_euler", "edm_dpmpp_2m"], "1e-05"),
    **dict.fromkeys(["unipc", "unipc_bh2", "deis_log_rho", "lcm", "tcd", "pndm", "ddim_inverse"], "1e-04"),
    "lms": "2e-04",
}
# Changed in ComfyUI after the checkout that this page was made with, or, the last one, another formula on purpose.
DIFFERENT = ("res_multistep_a", "res_multistep_a_cfg_pp", "gradient_estimation", "dpmpp_2s_a_cfg_pp")

HEAD = """# Samplers

Written by `python -m tests.golden.sampler_table --comfyui FOLDER`; `undertow samplers NAME` shows one with its options.
![The sampling grids](../images/schedules.png)

* **order**: the error shrinks as step^order. **measured**: from halving the step on a problem with a known solution, in
  float64 (`tests/sampling/test_order.py`), where the sampler has a solver of the ordinary equation inside. Multistep
  methods of high order start there with small steps; weights for equal steps (pndm, ipndm, ipndm_v) are measured on
  unequal ones.
* **k-diffusion**, **ComfyUI**: the largest difference of any x at any evaluation of runs with 5 and 12 steps on two
  grids, relative to the largest value, in float64 with the same noise (`tests/golden/test_k_diffusion.py`). ComfyUI is
  its `comfy/k_diffusion/sampling.py` of February 2025, not part of the tests. Its deis sums 10,000 points where ours
  integrates; dpm_fast and dpm_adaptive keep their levels in float32 in k-diffusion.
* **diffusers**: the difference that the tests allow, in float32 (`tests/golden/test_schedulers.py`,
  `tests/golden/test_more_schedulers.py`).
* Not run side by side: restart, er_sde, seeds_2, seeds_3 and sa_solver with any peer; res_multistep_a and
  gradient_estimation with ComfyUI, where they changed later; dpm2, dpmpp_2s, dpmpp_3m, dpmpp_sde, ipndm and sa_solver
  with diffusers. They are held by their order, the distribution they draw, and their kin at eta = 0.
* dpmpp_2s_a_cfg_pp is not ComfyUI's: see its docstring.
* dpmpp_3m and dpmpp_3m_sde are of second order with the weights that everybody uses; ipndm_v's published weights add up
  to 1 only where steps shrink evenly; heunpp2's weights of later slopes shrink with sigma.

| sampler | order | measured | evaluations | noise | k-diffusion | ComfyUI | diffusers | other names |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path)
    folder = parser.parse_args().comfyui
    reference = k_diffusion()
    if reference is None:
        parser.error("k-diffusion is not installed: make installs it")
    beside = {name: worst(reference, name, peer) for name, peer in K_DIFFUSION.items()}
    comfyui = comfyui_of(PAGE.read_text()) if folder is None else {}
    if folder is not None:
        module = load_sampling(folder)
        comfyui = {
            name: worst(module, name, peer)
            for name, peer in COMFYUI.items()
            if exists(module, peer) and name not in DIFFERENT
        }
    rows = [row(name, entry, beside, comfyui) for name, entry in SAMPLERS.items()]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")


def worst(module, name: str, peer: Peer) -> str:
    schedule = NoiseSchedule.scaled_linear()
    grids = [sigma_grid(grid, schedule, steps) for grid in ("karras", "normal") for steps in (5, 12)]
    return f"{max(worst_difference(module, name, peer, sigmas) for sigmas in grids):.0e}"


def comfyui_of(page: str) -> dict[str, str]:
    """The column as the page has it."""
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if re.match(r"\| \w+ \|", line)]
    return {cells[1]: cells[7] for cells in rows if cells[7]}


def row(name: str, entry: SamplerEntry, beside: dict[str, str], comfyui: dict[str, str]) -> str:
    cells = [
        name,
        "-" if entry.order is None else str(entry.order),
        measured(name),
        "its own" if entry.evaluations is None else str(entry.evaluations),
        "yes" if entry.stochastic else "",
        beside.get(name, ""),
        comfyui.get(name, ""),
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
