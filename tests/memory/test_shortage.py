"""What counts as running out of memory, and as a forward's rows."""

import pytest

from undertow import shortage
from undertow.memory.work import Work


@pytest.mark.parametrize(("limit", "short"), [(10**9, True), (None, False)])
def test_a_primitive_that_cannot_be_created_is_short_memory_under_a_limit(limit, short, monkeypatch):
    monkeypatch.setattr(shortage, "address_limit", lambda: limit)
    assert shortage.is_out_of_memory(RuntimeError("could not create a primitive")) is short


def test_rows_of_others_and_padding_are_part_of_a_forward():
    assert Work(pictures=1, branches=2, shared_rows=16).batch == 16
    assert Work(pictures=1, branches=2, rows=4, shared_rows=16).batch == 4
    assert Work(pictures=8, branches=2, shared_rows=4).batch == 16
