"""The timesteps that diffusers' schedulers visit, by their `timestep_spacing` (arXiv:2305.08891, table 2).

Schedulers that share a word do not share the timesteps: those that count in sigma visit fractions with "linspace", the
multistep solvers take one step more and leave out the last, and the others round. LCM and TCD pick from the timesteps
that their models were distilled at, whatever their spacing says.
"""

import numpy as np

from undertow.errors import InvalidInput
from undertow.schedulers.model_sampler import Counting, Spacing
from undertow.step_counts import require_distilled

Times = np.ndarray[tuple[int], np.dtype[np.float64]]


def spaced_timesteps(spacing: Spacing, counting: Counting, trained: int, steps: int, offset: int = 0) -> Times:
    """The timesteps of `steps` steps from the noisiest, for a network with `trained` ones.

    offset: diffusers' `steps_offset`, of "leading". Errors: `InvalidInput` for more steps than there are timesteps.
    """
    count = steps + (counting == "one_more" and spacing != "trailing")
    if not 1 <= count <= trained:
        raise InvalidInput("steps", steps, f"from 1 to {trained - (count - steps)}, the network's training timesteps")
    match spacing:
        case "leading":
            times = np.arange(count) * (trained // count) + offset
        case "linspace" if counting == "fractions":
            times = np.linspace(0, trained - 1, count, dtype=np.float32).astype(np.float64)
        case "linspace":
            times = np.linspace(0, trained - 1, count).round()
        case _:
            times = np.arange(trained, 0, -trained / steps).round()[::-1] - 1
    times = times[::-1][:steps].astype(np.float64)
    if times[0] > trained - 1:
        raise InvalidInput("steps", steps, f"fewer, for the first timestep would be {times[0]:g} of {trained}")
    return times


def distilled_timesteps(original: int, trained: int, steps: int) -> Times:
    """`steps` of the `original` timesteps that a consistency model was distilled at (diffusers' LCMScheduler,
    TCDScheduler). Errors: `InvalidInput` for more steps than those."""
    require_distilled(steps, original)
    at = np.arange(1, original + 1) * (trained // original) - 1
    return at[::-1][np.linspace(0, original, num=steps, endpoint=False).astype(int)].astype(np.float64)
