"""The records of `nn` and `unet` are data: frozen, so that what was checked stays so, and named at every call."""

import importlib
import pkgutil
from dataclasses import fields, is_dataclass

import pytest

import undertow.nn
import undertow.unet

RECORDS = {
    kind.__qualname__: kind
    for package in (undertow.nn, undertow.unet)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    for kind in vars(importlib.import_module(module.name)).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.name
}


def test_there_are_some():
    assert {"WeightRows", "ImageTokens", "UNetConfig", "Conditioning", "Ports"} <= RECORDS.keys()


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_frozen_and_its_fields_are_named(name):
    assert RECORDS[name].__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(RECORDS[name]))
