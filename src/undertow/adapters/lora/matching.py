"""Which layers of a model the layers of a file are: by their names or numbers, verified by shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from undertow.adapters.lora.base_model import BaseModel
from undertow.adapters.lora.lora_source import LoraFile
from undertow.adapters.lora.numbered import ORDERS, numbered_layers, split_number
from undertow.adapters.lora.planned_layer import PlannedLayer
from undertow.adapters.lora.targets import STRUCTURES, Place, Targets, targets_of_config
from undertow.adapters.lora.updates import Update, vector_fits
from undertow.errors import AdapterMismatch, CorruptFile
from undertow.unet.presets import PRESETS

PUBLISHED = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl", "sdxl-refiner": "sdxl_refiner"}
"""A preset of each family, and the family's key in `STRUCTURES`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """The layers of a file by those of the model. reshaped: layers that have another shape in the model. unmatched:
    layers that the model does not have."""

    matched: Mapping[Place, PlannedLayer]
    reshaped: Mapping[Place, PlannedLayer]
    unmatched: Sequence[PlannedLayer]

    @property
    def whole(self) -> bool:
        """Whether every layer of the file is one of the model's."""
        return not self.reshaped and not self.unmatched


def match_layers(file: LoraFile, planned: Sequence[PlannedLayer], targets: Targets) -> Matching:
    """Assigns layers to those of the model.

    Errors: `CorruptFile` for two that are the same; `AdapterMismatch` for numbered ones that are not this model's.
    """
    numbered = _number(file, planned, targets)
    matched: dict[Place, PlannedLayer] = {}
    reshaped: dict[Place, PlannedLayer] = {}
    unmatched: list[PlannedLayer] = []
    for each in planned:
        stem = each.layer.stem
        places = (numbered[stem],) if stem in numbered else targets.candidates(stem)
        place = next((place for place in places if _fits(each.update, place, targets)), None)
        if not places:
            unmatched.append(each)
        elif place is None:
            reshaped[places[0]] = each
        elif place in matched:
            pair = f"{matched[place].layer.stem} and {stem}"
            raise CorruptFile(file.path, f"{pair} are the same layer", "load one of the adapters in it at a time")
        else:
            matched[place] = each
    return Matching(matched=matched, reshaped=reshaped, unmatched=unmatched)


def fitting_family(file: LoraFile, planned: Sequence[PlannedLayer]) -> BaseModel | None:
    """The published family in which every layer of the file has its place, or all of several."""
    fitting = [STRUCTURES[PUBLISHED[preset]] for preset in PUBLISHED if _fits_whole(file, planned, preset)]
    if not fitting:
        return None
    others = "no other family" if len(fitting) == 1 else f"{len(fitting)} families alike"
    return BaseModel(title=" or ".join(fitting), evidence=f"its {len(planned)} layers fit it, and {others}")


def _fits_whole(file: LoraFile, planned: Sequence[PlannedLayer], preset: str) -> bool:
    try:
        return match_layers(file, planned, _published(preset)).whole
    except (AdapterMismatch, CorruptFile):
        return False


@cache
def _published(preset: str) -> Targets:
    return targets_of_config(PRESETS[preset]())


def _number(file: LoraFile, planned: Sequence[PlannedLayer], targets: Targets) -> dict[str, Place]:
    """The places of numbered layers, by stem, in the first order in which all of a network's have their shapes. Errors:
    `AdapterMismatch` when there is none."""
    found: dict[str, Place] = {}
    for component, classes in file.module_classes.items():
        network = "unet" if component == "unet" else next(iter(targets.encoders), None)
        if network is None:
            continue  # without text encoders their layers match nothing
        own = {number: each for each in planned if (number := split_number(component, each.layer.stem)) is not None}
        for order in ORDERS:
            names = numbered_layers(targets.layers[network], network, classes, order)
            places = [Place(network=network, module=name) for name in names]
            if own.keys() == set(range(len(places))) and all(
                _fits(own[number].update, place, targets) for number, place in enumerate(places)
            ):
                found |= {own[number].layer.stem: place for number, place in enumerate(places)}
                break
        else:
            raise AdapterMismatch(
                file.path,
                f"its {len(own)} numbered layers of {component} are not, in their order and shapes, the layers of "
                f"{targets.family} that its header names ({', '.join(classes)})",
                "use it with the base model that it was trained on",
                unmatched=[each.layer.stem for each in own.values()],
            )
    return found


def _fits(update: Update, place: Place, targets: Targets) -> bool:
    target = targets[place]
    return update.fits(target.shape) and vector_fits(update.bias_change, target.shape[0])
