"""The first picture of a model that was loaded, the smallest that it can draw: whether it consists of numbers."""

import logging

from PIL import Image

from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.errors import UndertowError
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.failures import FailureCode, failure_of
from undertow.serving.settings import ServerSettings
from undertow.serving.worker.models import Loaded, loaded, needed_bytes

logger = logging.getLogger(__name__)


def fault_of(there: Loaded) -> str:
    """Why no picture of a model has numbers that are finite; empty for one that is well, or needs more than a prompt.
    Everything that a picture passes is tried: text encoders, one step of the U-Net, and the decoder."""
    unet = there.entry.subject.unet
    assert unet is not None
    may = there.service.runner.capabilities
    own = may.fixed_shapes and may.repeatable  # what is made for a size is made for one that jobs have
    side = there.entry.trained_size if own else there.entry.subject.factor * 2 ** (len(unet.levels) - 1)
    edited = Image.new("RGB", (side, side), "gray") if unet.in_channels == 2 * unet.out_channels else None
    request = GenerationRequest(prompt="a", steps=1, size=(side, side), guidance_scale=1.0, image=edited)
    try:
        there.engine.submit(request, options=RunOptions(limits=BatchLimits(padded_to=1))).result()
    except UndertowError as error:
        failure = failure_of(error)
        if failure.code is FailureCode.NON_FINITE:
            return failure.detail
        logger.info("%s was not tried: %s", there.entry.name, error)
    return ""


def faults(settings: ServerSettings) -> dict[str, str]:
    """Loads every model of a service, one after the other, on its first device, and tries it: what is wrong, by name.
    Errors: those of `undertow.load`."""
    device = settings.devices[0]
    catalog, found = Catalog(settings, device=device), dict[str, str]()
    for name in settings.models:
        entry = catalog.model(name)
        there = Loaded(entry=entry, service=loaded(entry, device, False), needed_bytes=needed_bytes(entry, slots=False))
        try:
            fault = fault_of(there)
        finally:
            there.engine.close()
        if fault:
            found[name] = fault
    return found
