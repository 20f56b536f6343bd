"""What `undertow doctor --fix` does: a preset in undertow.toml. No model and no picture is changed."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undertow.cli.config import read_config
from undertow.cli.config_file import FILE, config_file
from undertow.cli.model_loading import LoadingOptions, Precision
from undertow.known_names import PRECISIONS

if TYPE_CHECKING:
    from undertow.inspection.doctor.finding import Change, Diagnosis

OPTIONS = {
    "guidance_scale": "guidance",
    "negative_prompt": "negative",
    "dtype": "precision",
    "vae_dtype": "vae-precision",
}
"""Of `undertow generate`, where a change is called otherwise."""

BY_OPTION = frozenset({"guidance", "negative", "size", "steps", "schedule", "sampler", "count"}) | frozenset(
    {"precision", "vae-precision", "prediction", "attention"}
)
"""Options that a preset can say."""

TYPES = {dtype: Precision(name) for name, dtype in PRECISIONS.items()}


def preset_of(found: "Diagnosis") -> dict[str, Any]:
    """Settings of `undertow generate` that cure what they can. Fields that are to be left away need none."""
    settings: dict[str, Any] = {}
    for change in found.changes:
        option = OPTIONS.get(change.name, change.name)
        if change.value is not None and option in BY_OPTION:
            settings[option] = _as_typed(change)
    return settings


def _as_typed(change: "Change") -> Any:
    if change.name == "size":
        height, width = change.value
        return f"{width}x{height}"
    return TYPES[change.value].value if change.name.endswith("dtype") else change.value


def write_preset(model: str, settings: Mapping[str, Any]) -> tuple[Path, str]:
    """Adds a preset to the end of undertow.toml, which may be new, and returns the file and the preset's name. Errors:
    `InvalidInput` for a file that cannot be read; `OSError`."""
    path = config_file()
    path = Path(FILE) if path is None else path
    known = read_config().presets
    stem = "doctor-" + (re.sub(r"[^A-Za-z0-9_-]+", "-", Path(model).name).strip("-") or "model")
    name = next(one for one in (stem, *(f"{stem}-{count}" for count in range(2, 10**6))) if one not in known)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [f"[presets.{name}]", *(f"{option} = {json.dumps(value)}" for option, value in settings.items())]
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(gap + "\n".join(lines) + "\n")
    return path, name


def loaded_as(loading: LoadingOptions, found: "Diagnosis") -> LoadingOptions:
    """The options with the changes of the diagnosis."""
    changes = {change.name: change.value for change in found.changes if change.where == "load"}
    known = {
        "precision": TYPES.get(changes.get("dtype", ""), loading.precision),
        "vae_precision": TYPES.get(changes.get("vae_dtype", ""), loading.vae_precision),
        "prediction": changes.get("prediction", loading.prediction),
        "attention": changes.get("attention", loading.attention),
    }
    return replace(loading, **known)
