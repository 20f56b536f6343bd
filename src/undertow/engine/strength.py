"""How much of a picture may change: three conventions for the same word."""

from collections.abc import Callable, Sequence

from undertow.engine.request import Strength


def truncated(
    grid: Sequence[float], strength: float, convention: Strength, grid_of: Callable[[int], Sequence[float]]
) -> list[float]:
    """The end of a grid that a strength leaves: `grid` itself at 1, one level (no step) at 0."""
    steps = len(grid) - 1
    match convention:
        case "diffusers":
            kept = min(int(steps * strength), steps)
            return list(grid[steps - kept :])
        case "comfy":
            if strength == 0:
                return [grid[-1]]
            longer = grid_of(int(steps / strength))
            return list(longer[-(steps + 1) :])
        case "a1111":
            kept = min(int(min(strength, 0.999) * steps) + 1, steps) if strength else 0
            return list(grid[steps - kept :])
