"""The steps of a request: how many they and their evaluations are, and along which levels of noise they may go. Without
torch, so that all of it is known before anything is drawn."""

from collections.abc import Mapping, Sequence
from math import ceil

from undertow.errors import InvalidInput
from undertow.known_names import COUNTED_GRIDS, TABLED_GRIDS, PathName, require_sampler
from undertow.limits import STEPS

LARGEST_SIGMA = 1e9
"""Its square is still a number in float32. Published models end below 5,000."""

SIGMA_ROUNDING = 1e-4
"""A sigma that went through float32 or a power of 1/rho may exceed the highest level by that share of it."""

EVALUATIONS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            *("heun", "dpm2", "dpm2_a", "restart", "dpmpp_2s", "dpmpp_2s_a", "dpmpp_2s_a_cfg_pp", "dpmpp_sde"),
            *("seeds_2", "sa_solver_pece", "flow_heun"),
        ),
        2,
    ),
    **dict.fromkeys(("heunpp2", "seeds_3"), 3),
}
"""Calls of the network in a step, of samplers that take more than one (`sampling.catalogue`)."""


def evaluations(sampler: str) -> int:
    """Calls of the network in a step of a sampler by any of its names; 1 for those whose number of calls is not known
    before. Errors: `InvalidInput` for a name that there is not."""
    return EVALUATIONS.get(require_sampler(sampler), 1)


def computed_steps(steps: int, *, every: int, first: int, last: float) -> list[bool]:
    """For each step, whether it is computed: of the others the estimate is forecast (`sampling.forecast`).

    every: one of so many is computed. first: steps at the start that all are. last: share of steps at the end that all
    are."""
    end = steps - ceil(last * steps)
    return [step < first or step >= end or (step - first) % every == every - 1 for step in range(steps)]


def kept_steps(steps: int, strength: float, convention: str) -> int:
    """The steps of a grid that a denoising strength leaves (`diffusion.strength` says what the conventions are).

    Errors: `InvalidInput` for one that there is not."""
    if strength == 0:
        return 0
    match convention:
        case "diffusers":
            return max(1, int(steps * strength))
        case "comfy":
            return steps
        case "a1111":
            return min(int(min(strength, 0.999) * steps) + 1, steps)
        case _:
            raise InvalidInput("strength convention", repr(convention), "'diffusers', 'comfy' or 'a1111'")


def longer_grid(steps: int, strength: float) -> int:
    """Steps of the grid of whose end ComfyUI takes as many as were asked for. Errors: `InvalidInput` for a grid of more
    than `limits.STEPS`: a strength of 1e-9 would ask for more levels than there is memory."""
    if strength > 0.9999:
        return steps
    if steps / strength > STEPS.most:
        raise InvalidInput(
            "strength",
            f"{strength:g} of {steps} steps, the end of a grid of {steps / strength:.3g}",
            f"at most {STEPS.most:,} steps of the whole grid",
            f"take a larger strength, or the convention 'diffusers' or 'a1111'; or {STEPS.remedy}",
        )
    return int(steps / strength)


def whole_grid(steps: int, strength: float, convention: str) -> int:
    """Steps of the grid whose end a strength leaves. Errors: as `longer_grid`."""
    return longer_grid(steps, strength) if convention == "comfy" and strength > 0 else steps


def require_distilled(steps: int, original: int, argument: str = "steps") -> None:
    """original: steps that a consistency model was distilled at. Errors: `InvalidInput` for more than those."""
    if not 1 <= steps <= original:
        raise InvalidInput(argument, steps, f"from 1 to {original}, the steps that the model was distilled at")


def require_on_grid(
    grid: str, steps: int, trained: int, path: PathName | None, *, discards: bool = False, argument: str = "steps"
) -> None:
    """grid: our name. trained: timesteps of the network. path: that its levels go along; `None` where it is not known.
    discards: the last level above 0 is left out, of a grid with one step more. argument: which says the steps. Errors:
    `InvalidInput` for more steps than the grid has levels, and for a grid that the path has not."""
    if grid in TABLED_GRIDS and path == "RectifiedFlow":
        remedy = "take normal or simple for a flow"
        raise InvalidInput("schedule", repr(grid), "a grid for the flow path, whose sigma ends at 1", remedy)
    if grid in COUNTED_GRIDS and steps > trained - discards:
        but = ", of which it leaves one out" if discards else ""
        remedy = "take fewer, or another schedule"
        raise InvalidInput(
            argument,
            steps,
            f"at most {trained - discards} on {grid}: the network has {trained} training timesteps{but}",
            remedy,
        )


def require_levels(sigmas: Sequence[float], highest: float, path: PathName | None) -> None:
    """highest: level of the network. path: that its levels go along; `None` where it is not known. Errors:
    `InvalidInput` for noise that the network was not trained on."""
    rounding = 0.0 if path == "RectifiedFlow" else highest * SIGMA_ROUNDING  # whose end is exactly 1
    if sigmas[0] > highest + rounding:
        remedy = "use levels of noise that this network was trained on"
        raise InvalidInput("sigmas[0]", sigmas[0], f"a number from 0 to {highest:g}", remedy)


def require_grid(sigmas: Sequence[float]) -> None:
    """Refuse what no sampler can walk along.

    Errors: `InvalidInput` unless there are two or more sigmas, strictly decreasing, from at most `LARGEST_SIGMA` to no
    less than 0.
    """
    expected = f"two or more sigmas, strictly decreasing, from at most {LARGEST_SIGMA:g} to no less than 0"
    if len(sigmas) < 2:
        raise InvalidInput("sigmas", list(sigmas), expected, "make them with sigma_grid(name, schedule, steps)")
    for index, sigma in enumerate(sigmas):
        if not 0 <= sigma <= LARGEST_SIGMA or (index > 0 and sigma >= sigmas[index - 1]):
            raise InvalidInput(f"sigmas[{index}]", sigma, expected, "make them with sigma_grid(name, schedule, steps)")
