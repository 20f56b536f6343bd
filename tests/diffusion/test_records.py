"""Decision 4: records of the mathematics are frozen and take their fields by name; the exceptions are these."""

import dataclasses
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import undertow.attention
import undertow.diffusion
import undertow.sampling

STATES = {"GuidanceRun", "_Projecting", "_StepController"}
"""What one run remembers from step to step."""

POSITIONAL = {
    *("ModelCall", "VarianceExploding", "TabledBetas", "XPrediction", "EDMPrediction", "GuidanceRun", "_Projecting"),
}
"""Of one field, or of fields in an order that everybody knows."""


def records(room: ModuleType) -> dict[str, type]:
    modules = [
        importlib.import_module(found.name) for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
    ]
    return {
        name: kind
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }


@pytest.mark.parametrize("room", [undertow.attention, undertow.diffusion, undertow.sampling], ids=lambda r: r.__name__)
def test_records_are_frozen_and_take_their_fields_by_name(room: ModuleType):
    found = records(room)
    assert len(found) >= 3
    for name, kind in found.items():
        assert kind.__dataclass_params__.frozen == (name not in STATES), name
        positional = [field.name for field in dataclasses.fields(kind) if field.init and not field.kw_only]
        assert bool(positional) == (name in POSITIONAL), (name, positional)
