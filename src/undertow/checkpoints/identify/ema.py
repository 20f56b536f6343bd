"""Averaged (EMA) weights in single files.

LDM stores them under `model_ema.` with all dots removed from the name (`ldm/modules/ema.py`, LitEma), which is not
reversible: "input_blocks.1.10" and "input_blocks.11.0" become the same. So the EMA name is derived from the plain one.
"""

from collections.abc import Mapping

from undertow.checkpoints.files.weights import Weights
from undertow.checkpoints.keymap.contents import Contents, Part
from undertow.errors import MissingComponent

MODEL = "model."


def ema_names(weights: Weights, contents: Contents, part: Part) -> Mapping[str, str]:
    """The name of each U-Net tensor's average in the file, by its plain name. Errors: `MissingComponent`."""
    bare = {name: short for short, name in contents.names.items()}
    flat = {name: "model_ema." + bare[name].removeprefix(MODEL).replace(".", "") for name in part.mappings}
    found = {name: contents.names[short] for name, short in flat.items() if short in contents.names}
    if len(found) != len(flat):
        held = f"{len(found)} of {len(flat)} tensors are averaged" if found else "there is no tensor model_ema.*"
        raise MissingComponent(
            weights.path, f"averaged (EMA) weights of the U-Net ({held})", "load it with `ema=False`"
        )
    return found


def has_ema(contents: Contents) -> bool:
    """Whether the file holds any averaged weights."""
    return any(short.startswith("model_ema.") for short in contents.names)
