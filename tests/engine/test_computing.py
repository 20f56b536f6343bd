"""What a report says of how its pictures were computed."""

from dataclasses import replace

import pytest

from tests.services import service_of
from undertow import GenerationRequest, UNetService
from undertow.engine.computing import Computing, Slots
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.unet.runner import EagerRunner


class Background(EagerRunner):
    """Stands in for a runner whose graphs may come at any time."""

    capabilities = replace(EagerRunner.capabilities, repeatable=False)


@pytest.mark.parametrize(("rows", "backend"), [(None, "background"), (2, None)])
def test_what_must_be_repeatable_was_drawn_eagerly_and_slots_are_for_lora(rows, backend):
    chosen = Computing(precision="bf16", backend="background", slots=Slots(slots=2, per_row=2))
    service = UNetService(service_of("sd1").model, runner=Background(), computing=chosen)
    options = RunOptions(limits=BatchLimits(padded_to=rows))
    handle = service.engine.submit(GenerationRequest(prompt="an owl", steps=1, size=(16, 16)), options=options)
    assert handle.result().report.computing == Computing(precision="bf16", backend=backend)
