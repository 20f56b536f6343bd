"""How much of a picture may change: the end of a grid that a denoising strength leaves.

One word, three conventions, and with the same numbers three different pictures:

    diffusers    int(steps strength) of the grid's steps: fewer evaluations than `steps`; below one step it refuses, and
                 one is taken here
    comfy        a grid of int(steps / strength) steps, of which the last `steps` are taken: always `steps` evaluations;
                 A1111 with "exactly the amount of steps the slider specifies" (strength at most 0.999)
    a1111        int(min(strength, 0.999) steps) + 1 of the grid's steps, as k-diffusion's scripts with t_enc
"""

from collections.abc import Callable, Sequence

from undertow.errors import InvalidInput
from undertow.step_counts import kept_steps, whole_grid


def truncate(grid_of: Callable[[int], Sequence[float]], steps: int, strength: float, convention: str) -> list[float]:
    """The levels to visit: the whole grid at strength 1, its last level alone (no step) at 0, else at least one step.

    grid_of: the grid with that many steps, e.g. `partial(sigma_grid, "karras", schedule)`. Errors: `InvalidInput`.
    """
    if not 0 <= strength <= 1:
        raise InvalidInput("strength", strength, "a number from 0 (nothing changes) to 1 (everything may)")
    if strength == 0:
        return [grid_of(steps)[-1]]
    kept = kept_steps(steps, strength, convention)
    grid = grid_of(whole_grid(steps, strength, convention))
    return list(grid[len(grid) - 1 - min(kept, len(grid) - 1) :])


def strength_note(steps: int, strength: float, convention: str) -> str | None:
    """What a user would not expect of so small a strength; `None` for others."""
    if strength == 0:
        return "a strength of 0 takes no step: nothing is drawn over the picture"
    if convention == "diffusers" and steps * strength < 1:
        return (
            f"a strength of {strength:g} is less than one of {steps} steps as diffusers counts; one step is taken "
            f"('a1111' takes one too, 'comfy' {steps} smaller ones)"
        )
    return None
