"""Tiny pipelines and the services over them, made once in a session, whichever test asks first.

All of them are shared: who changes files takes a copy of the folder, and who changes a network a fresh service;
`services_are_left_as_found` tells who did not.
"""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import undertow
from tests.golden.pipelines import save_pipeline
from undertow import AdapterCapacity, UNetService

_LOADED: dict[UNetService, dict[str, int]] = {}
"""Every shared service, and its networks as they were when it was loaded."""


@cache
def pipeline_folder(family: str) -> Path:
    """The folder of a tiny random pipeline of a family of `tests.golden.pipelines`, to be read only."""
    with torch.random.fork_rng(devices=[]):  # what a test draws must not depend on who came first
        return save_pipeline(family, _root() / family / "pipeline")


def copy_pipeline(family: str, folder: Path) -> Path:
    """The same pipeline in a folder that may be changed."""
    return shutil.copytree(pipeline_folder(family), folder)


@cache
def service_of(
    family: str,
    dtype: torch.dtype = torch.float32,
    *,
    refiner: str | None = None,
    capacity: AdapterCapacity | None = None,
) -> UNetService:
    """A service over `pipeline_folder(family)`. refiner: another family. capacity: slots for LoRA."""
    with torch.random.fork_rng(devices=[]):
        service = undertow.load(
            pipeline_folder(family),
            dtype=dtype,
            refiner=None if refiner is None else pipeline_folder(refiner),
            adapter_capacity=capacity,
        )
    _LOADED[service] = _seen(service)
    return service


def fresh_service(family: str) -> UNetService:
    """A service like `service_of(family)` whose networks may be changed."""
    return undertow.load(pipeline_folder(family), dtype=torch.float32)


@pytest.fixture(scope="module", autouse=True)
def services_are_left_as_found() -> Iterator[None]:
    """For the conftest.py of tests that share services: a module that changed one is an error."""
    yield
    for service, before in _LOADED.items():
        now = _seen(service)
        moved = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        assert not moved, f"changed by these tests in {service.model.path}: {moved}"


def _seen(service: UNetService) -> dict[str, int]:
    """The sum over the bits of each weight, which hardly a change leaves as it was, and the hooks of each network."""
    seen: dict[str, int] = {}
    for which, model in (("model", service.model), ("refiner", service.refiner)):
        if model is None:
            continue
        for network in (model.require_unet(), model.require_vae(), model.text):
            service.engine.memory.restore(network)  # which may have left memory for a request
        for part, network in (("unet", model.require_unet()), ("vae", model.require_vae())):
            seen |= {f"{which}.{part}.{name}": _bits(weight) for name, weight in network.named_parameters()}
            seen[f"hooks of {which}.{part}"] = _hooks(network)
        for index, encoder in enumerate(model.require_text(None).encoders):
            seen |= {f"{which}.text.{index}.{name}": _bits(weight) for name, weight in encoder.tensors().items()}
    return seen


def _bits(weight: Tensor) -> int:
    return int(weight.detach().view({4: torch.int32, 2: torch.int16}[weight.element_size()]).sum())


def _hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@cache
def _root() -> Path:
    place = tempfile.TemporaryDirectory(prefix="undertow-pipelines-")
    atexit.register(place.cleanup)
    return Path(place.name)
