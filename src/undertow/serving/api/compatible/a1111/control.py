"""Control maps as sd-webui-controlnet takes them in `alwayson_scripts` (internal_controlnet/external_code.py), as
adapters of ours. Maps come ready: nothing is computed from a photograph here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.records import Finite, Record
from undertow.serving.api.compatible.a1111.resize import opener, resized, text_of
from undertow.serving.api.compatible.fixed import Fixed, without_fixed
from undertow.serving.api.compatible.texts import without_texts

SCRIPTS = ("controlnet",)
"""Names of the script, in small letters."""

FIXED: Mapping[str, Fixed] = {
    "module": Fixed(values=("none", "None", ""), remedy="give a finished map; `undertow preprocess` makes one"),
    "mask": Fixed(remedy="the map acts everywhere"),
    "mask_image": Fixed(remedy="the map acts everywhere"),
    "effective_region_mask": Fixed(remedy="the map acts everywhere"),
    "hr_option": Fixed(values=("Both", "HiResFixOption.BOTH", 0), remedy="the map acts in both passes"),
    "advanced_weighting": Fixed(remedy="say with weight how strongly it acts"),
    **{
        name: Fixed(values=values)
        for name, values in {
            "low_vram": (True, False),
            "lowvram": (True, False),
            "pixel_perfect": (True, False),
            "save_detected_map": (True, False),
        }.items()
    },
}
"""Fields of a unit that can only have one meaning here."""

OF_PREPROCESSORS = ("processor_res", "threshold_a", "threshold_b")
"""Numbers that without a preprocessor mean nothing."""

MODES = {
    0: "balanced",
    1: "prompt",
    2: "control",
    "Balanced": "balanced",
    "My prompt is more important": "prompt",
    "ControlNet is more important": "control",
}
RESIZING = {0: 0, 1: 1, 2: 2, "Just Resize": 0, "Crop and Resize": 1, "Resize and Fill": 2}


@dataclass(frozen=True, kw_only=True)
class Unit(Record):
    """A map, and what reads it."""

    argument_prefix = "controlnet."
    called = "a unit of ControlNet"

    model: str
    image: str = ""
    weight: Finite = 1.0
    guidance_start: Annotated[Finite, Ge(0), Le(1)] = 0.0
    guidance_end: Annotated[Finite, Ge(0), Le(1)] = 1.0
    control_mode: int | str = 0
    resize_mode: int | str = 1
    enabled: bool = True


def units_in(scripts: Mapping[str, Any]) -> tuple[list[Unit], dict[str, Any]]:
    """The units that are on, and the other scripts. Errors: `InvalidInput`."""
    units: list[Unit] = []
    others: dict[str, Any] = {}
    for name, script in scripts.items():
        if name.lower() not in SCRIPTS or not isinstance(script, Mapping):
            others[name] = script
            continue
        for one in script.get("args") or ():
            if not isinstance(one, Mapping):
                raise InvalidInput("alwayson_scripts.controlnet.args", shown(one), "objects")
            if without_texts(Unit, one).get("enabled", True):
                units.append(_unit(one))
    return units, others


def with_controls(
    wanted: Mapping[str, Any], units: Sequence[Unit], max_pixels: int, *, only_masked: bool
) -> dict[str, Any]:
    """The job with adapters for the units; one without a picture reads the one that img2img starts from. only_masked:
    whether only a part of a picture is drawn, of which a map would have to be cut too. Errors: `InvalidInput`."""
    found: list[dict[str, Any]] = []
    height, width = wanted.get("size") or (None, None)
    for index, unit in enumerate(units):
        name = f"controlnet.args[{index}].image"
        picture = unit.image or wanted.get("image")
        if picture is None:
            raise InvalidInput(name, "left out", "the control map in base64")
        if unit.image and only_masked:
            raise InvalidInput(name, "given", "nothing with inpaint_full_res", "set inpaint_full_res to false")
        map_ = opener(max_pixels).open(name, picture)
        if height is not None and width is not None:
            map_ = resized(map_, (width, height), _choice("resize_mode", unit.resize_mode, RESIZING))
        found.append(
            {
                "source": unit.model.rpartition(" [")[0] if unit.model.endswith("]") else unit.model,
                "scale": unit.weight,
                "start": unit.guidance_start,
                "end": unit.guidance_end,
                "control_mode": _choice("control_mode", unit.control_mode, MODES),
                "image": text_of(map_),
            }
        )
    return {**wanted, "adapters": [*wanted.get("adapters", ()), *found]} if found else dict(wanted)


def _unit(given: Mapping[str, Any]) -> Unit:
    renamed = {("image" if name == "input_image" else name): value for name, value in given.items()}
    known = without_fixed({name: value for name, value in renamed.items() if name not in OF_PREPROCESSORS}, FIXED)
    return Unit.from_json(without_texts(Unit, {name: value for name, value in known.items() if value is not None}))


def _choice(name: str, given: int | str, known: Mapping[int | str, Any]) -> Any:
    if given not in known:
        raise InvalidInput(f"controlnet.{name}", shown(given), f"one of {', '.join(map(str, known))}")
    return known[given]
