"""How much of a picture may change: the end of a grid that a denoising strength leaves.

One word, three conventions, and with the same numbers three different pictures:

    diffusers    int(steps strength) of the grid's steps: fewer evaluations than `steps`
    comfy        a grid of int(steps / strength) steps, of which the last `steps` are taken: always `steps` evaluations;
                 A1111 with "exactly the amount of steps the slider specifies" (strength at most 0.999)
    a1111        int(min(strength, 0.999) steps) + 1 of the grid's steps, as k-diffusion's scripts with t_enc
"""

from collections.abc import Callable, Sequence

from undertow.errors import InvalidInput


def truncate(grid_of: Callable[[int], Sequence[float]], steps: int, strength: float, convention: str) -> list[float]:
    """The levels to visit: the whole grid at strength 1, its last level alone (no step) at 0.

    grid_of: the grid with that many steps, e.g. `partial(sigma_grid, "karras", schedule)`. Errors: `InvalidInput`.
    """
    if not 0 <= strength <= 1:
        raise InvalidInput("strength", strength, "a number from 0 (nothing changes) to 1 (everything may)")
    if strength == 0:
        return [grid_of(steps)[-1]]
    match convention:
        case "diffusers":
            kept = min(int(steps * strength), steps)
            grid = grid_of(steps)
        case "comfy":
            kept = steps
            grid = grid_of(int(steps / strength) if strength <= 0.9999 else steps)
        case "a1111":
            kept = min(int(min(strength, 0.999) * steps) + 1, steps)
            grid = grid_of(steps)
        case _:
            raise InvalidInput("strength convention", repr(convention), "'diffusers', 'comfy' or 'a1111'")
    return list(grid[len(grid) - 1 - min(kept, len(grid) - 1) :])
