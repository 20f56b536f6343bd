"""A1111's settings, of which each API key has its own: what one client chooses changes nothing for another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.checkpoints.files.hashes import MODEL_DIGITS
from undertow.doors import nearest, shown
from undertow.errors import InvalidInput
from undertow.serving.api.compatible.fixed import Fixed, require_fixed
from undertow.serving.api.compatible.texts import read_text
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.catalog.entries import ModelEntry
from undertow.serving.jobs import Format

FORMATS: Mapping[str, Format] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}

CHECKPOINT, CLIP_SKIP, FORMAT = "sd_model_checkpoint", "CLIP_stop_at_last_layers", "samples_format"
CHANGEABLE = (CHECKPOINT, CLIP_SKIP, FORMAT)

FIXED: Mapping[str, Fixed] = {
    "sd_checkpoint_hash": Fixed(remedy="it follows sd_model_checkpoint"),
    "sd_vae": Fixed(values=("Automatic", "None", ""), remedy="the model's own autoencoder is taken"),
    "randn_source": Fixed(values=("CPU",), remedy="noise is drawn by the CPU's generator"),
    "eta_noise_seed_delta": Fixed(values=(0,), remedy="seeds have no offset"),
    "eta_ancestral": Fixed(values=(1, 1.0), remedy="give eta with the request"),
    "eta_ddim": Fixed(values=(0, 0.0), remedy="give eta with the request"),
    "enable_pnginfo": Fixed(values=(True,), remedy="pictures say how they were made"),
    "return_grid": Fixed(values=(False,), remedy="pictures come one by one"),
    "do_not_add_watermark": Fixed(values=(True,)),
}
"""Settings that are what they are."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """clip_skip: `None` reads the layer that the model was trained with."""

    model: str
    clip_skip: int | None = None
    format: Format = "png"


def title_of(model: ModelEntry) -> str:
    """What A1111 calls a checkpoint: its name and the beginning of its hash."""
    return f"{model.name} [{model.a1111_hash[:MODEL_DIGITS]}]"


def model_named(text: str, catalog: Catalog) -> ModelEntry:
    """By its name, its title, or its hash. Errors: `InvalidInput`."""
    models = catalog.models
    name = text.rpartition(" [")[0] if text.endswith("]") else text
    for tried in (text, name, name.removesuffix(".safetensors")):
        if tried in models:
            return models[tried]
    if len(text) >= MODEL_DIGITS and all(digit in "0123456789abcdef" for digit in text.lower()):
        for model in models.values():
            if model.a1111_hash.startswith(text.lower()):
                return model
    try:
        return catalog.model(text)
    except InvalidInput as err:
        raise InvalidInput(CHECKPOINT, err.value, err.expected, err.remedy) from err


def changed(options: Mapping[str, Any], given: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The settings of a key after some were given, as they are kept. Errors: `InvalidInput` for those that there are
    not, and for values that they cannot have."""
    kept = dict(options)
    for name, value in given.items():
        if name in FIXED:
            own = name == "sd_checkpoint_hash" and isinstance(value, str)  # clients send all settings back
            if not own:
                require_fixed(name, value, FIXED[name])
        elif name not in CHANGEABLE:
            raise InvalidInput(str(name)[:100], "given", "a setting that GET /sdapi/v1/options lists", _near(name))
        elif value is not None:
            kept[name] = _checked(name, value, catalog)
    return kept


def options_of(kept: Mapping[str, Any], catalog: Catalog) -> Options:
    """What kept settings mean for a job; a model that is no longer served is the first one again."""
    name = str(kept.get(CHECKPOINT))
    skip = kept.get(CLIP_SKIP, 1)
    return Options(
        model=name if name in catalog.models else catalog.settings.default_model,
        clip_skip=None if skip == 1 else skip,
        format=FORMATS[kept.get(FORMAT, "png")],
    )


def options_json(kept: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """GET /sdapi/v1/options. Errors: `InvalidInput` where no model can be loaded."""
    model = catalog.model(options_of(kept, catalog).model)
    fixed = {name: one.values[0] for name, one in FIXED.items() if one.values}
    return {
        **fixed,
        CHECKPOINT: title_of(model),
        "sd_checkpoint_hash": model.a1111_hash,
        CLIP_SKIP: kept.get(CLIP_SKIP, 1),
        FORMAT: kept.get(FORMAT, "png"),
    }


def _checked(name: str, value: Any, catalog: Catalog) -> Any:
    if name == CHECKPOINT:
        if not isinstance(value, str):
            raise InvalidInput(name, shown(value), "the title or the name of a model")
        return model_named(value, catalog).name
    if name == CLIP_SKIP:
        value = read_text(value, {int})
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 12:
            raise InvalidInput(name, shown(value), "a whole number from 1 to 12")
        return value
    if not isinstance(value, str) or value.lower() not in FORMATS:
        raise InvalidInput(name, shown(value), f"one of {', '.join(FORMATS)}")
    return value.lower()


def _near(name: Any) -> str:
    return nearest(str(name)[:100], (*CHANGEABLE, *FIXED))
