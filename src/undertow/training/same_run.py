"""Whether a run may go on from a checkpoint: what must be the same, and what may change."""

import math
from pathlib import Path
from typing import Any

from undertow.errors import CheckpointError, UnknownCheckpoint
from undertow.training.optimizer import COOLDOWN
from undertow.training.training_state import SavedState

FREE_TO_CHANGE = frozenset(("log_every", "checkpoint_every", "keep_checkpoints"))
"""Settings that do not influence the weights, which may therefore differ when a run is resumed."""

ADDED_SETTINGS = {"optimizer": "adamw"}
"""Settings that checkpoints of earlier versions do not name, with what those versions did."""

PARTS = ("settings", "recipe")
SCHEDULE_START = "schedule_start"
"""The step after which the present learning rate schedule began, in a run that was continued after its end."""


def schedule_start(wanted: dict[str, Any], saved: SavedState, place: Path) -> int:
    """The step after which the learning rate schedule begins that the run goes on with; 0 for one schedule throughout.

    A run may get more steps while its learning rate is constant, as if it had had them from the start; after its last
    step it goes on with a schedule of its own for the rest. wanted: the settings and the recipe of now.
    Errors: `CheckpointError` for a run that differs in anything else, `UnknownCheckpoint`.
    """
    stored = saved.config
    if stored.keys() - {SCHEDULE_START} != set(PARTS):
        raise UnknownCheckpoint(place, "it was written by another version of undertow", "start in another folder")
    stored = stored | {"settings": ADDED_SETTINGS | stored["settings"]}
    began, before, now = int(stored.get(SCHEDULE_START, 0)), stored["settings"], wanted["settings"]
    finished = saved.step == before["steps"] and now["steps"] > before["steps"]
    grows = finished or saved.step <= _constant_until(before, began)
    free = set[str](FREE_TO_CHANGE)
    if grows:
        free.add("steps")
    if finished or saved.step >= began + max(before["warmup_steps"], now["warmup_steps"]):
        free.add("warmup_steps")  # which is over, or begins anew
    for part in PARTS:
        for name in sorted(wanted[part].keys() | stored[part].keys()):
            old, new = stored[part].get(name), wanted[part].get(name)
            if old != new and not (part == "settings" and name in free):
                raise CheckpointError(
                    place,
                    f"it belongs to another run: {name} was {old!r} and is now {new!r}",
                    _remedy(name, old, new),
                )
    return saved.step if finished and saved.step > _constant_until(before, began) else began


def _constant_until(settings: dict[str, Any], began: int) -> float:
    """Returns the last step whose learning rate does not depend on the number of steps."""
    match settings["decay"]:
        case "constant":
            return math.inf
        case "trapezoid":
            return began + (settings["steps"] - began) * (1 - COOLDOWN)
        case _:
            return 0


def _remedy(name: str, before: Any, now: Any) -> str:
    if name == "steps" and now > before:
        return f"finish it with {before} steps, and then go on with more; or use another folder"
    return "use the run's own settings, or another folder"
