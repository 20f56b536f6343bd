"""What counts as running out of memory, and as a forward's rows."""

import re
import resource
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch

import undertow
from tests.services import pipeline_folder
from undertow import GenerationRequest, OutOfMemory, RequestFailed, RunOptions, shortage
from undertow.free_memory import host_free_bytes, naming_memory
from undertow.memory.work import Work

ASKED = GenerationRequest(prompt="a cat", steps=2, size=(64, 64), seed=3)


@pytest.mark.parametrize(("limit", "short"), [(10**9, True), (None, False)])
def test_a_primitive_that_cannot_be_created_is_short_memory_under_a_limit(limit, short, monkeypatch):
    monkeypatch.setattr(shortage, "address_limit", lambda: limit)
    assert shortage.is_out_of_memory(RuntimeError("could not create a primitive")) is short


def test_rows_of_others_and_padding_are_part_of_a_forward():
    assert Work(pictures=1, branches=2, shared_rows=16).batch == 16
    assert Work(pictures=1, branches=2, rows=4, shared_rows=16).batch == 4
    assert Work(pictures=8, branches=2, shared_rows=4).batch == 16


@contextmanager
def addressing(room_bytes: int) -> Generator[None]:
    """Inside, the process may address so much more than it does now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(shortage.STATM.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_a_process_may_address_is_what_is_free():
    with addressing(2**30):
        room = shortage.address_room()
        free = host_free_bytes()
    assert room is not None
    assert 0.9 * 2**30 < room <= 2**30
    assert free is not None
    assert free <= 2**30
    assert shortage.address_room() is None
    assert shortage.address_words() == ""


def test_running_out_under_a_limit_says_what_it_is_and_what_is_left():
    with (
        addressing(2**28),
        pytest.raises(OutOfMemory, match=r"may address \d.* \(ulimit -v\), of which [\d.]+ [MG]B are left; free some"),
        naming_memory("drawing"),
    ):
        torch.empty(2**29, dtype=torch.uint8)


def test_a_model_that_a_process_cannot_address_stays_on_disk_and_draws_the_same():
    """Half of what is left for the work beside the weights: there is no room for all of them."""
    whole = undertow.load(pipeline_folder("sd1"), dtype=torch.float32)
    expected = whole.run(ASKED).latents
    assert not any("stay on disk" in note for note in whole.model.report.notes)
    with addressing(2**28):
        service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32)
        assert service.engine.memory.residency.present == ()
        drawn = service.run(ASKED).latents
    assert torch.equal(drawn, expected)
    said = next(note for note in service.model.report.notes if "stay on disk" in note)
    assert re.search(r"they take \d.*B, and this process may address", said)


def test_a_request_for_which_nothing_is_left_says_the_least_that_it_needs():
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32)
    service.engine.memory.others_bytes = 0  # tensors alone are counted, and nothing is planned before
    with pytest.raises(RequestFailed, match=r"the least that it needs is [\d.]+ [MG]B"):
        service.engine.submit(ASKED, options=RunOptions(budget_bytes=10)).result()


@pytest.mark.parametrize("when", ["drawn", "decoded"])
def test_so_do_a_forward_and_a_decoding(when):
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")

    network = service.unet if when == "drawn" else service.vae.decoder
    network.register_forward_pre_hook(fail)
    (network if when == "drawn" else network.conv_in).register_forward_pre_hook(fail)
    with pytest.raises(
        RequestFailed, match=r"also with less .*the least that it needs is [\d.]+ [MG]B; draw a smaller"
    ):
        service.run(ASKED)
