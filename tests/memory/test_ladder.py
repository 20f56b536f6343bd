"""How a request gives way: the order of issue 18, and that it ends."""

from dataclasses import replace

import pytest

from undertow.errors import InvalidInput
from undertow.memory.ladder import (
    MOST_CHUNKS,
    Economy,
    Possible,
    StepDown,
    decoded_with_less,
    drawn_with_less,
    read_with_less,
)


def way_down(rows: int, possible: Possible) -> list[Economy]:
    found, economy = [], Economy()
    while (less := drawn_with_less(economy, rows, possible)) is not None:
        found.append(less)
        economy, rows = less, rows if less.rows is None else less.rows
    return found


def test_what_costs_least_goes_first():
    """Idle models, then smaller batches down to sequential guidance, then attention and feed-forward in parts, then
    layers."""
    idle = Economy(evict_idle=True)
    least = Economy(evict_idle=True, rows=1, attention_in_parts=True)
    assert way_down(4, Possible()) == [
        idle,
        Economy(evict_idle=True, rows=2),
        Economy(evict_idle=True, rows=1),
        least,
        *(replace(least, feed_forward_chunks=chunks) for chunks in (2, 4, 8)),
        replace(least, feed_forward_chunks=MOST_CHUNKS, offloaded_layers=True),
    ]


def test_what_is_not_possible_is_left_out():
    assert way_down(2, Possible(evict=False, attention=False, chunks=False, offload=False)) == [Economy(rows=1)]
    assert way_down(8, Possible(evict=False, fewer_rows=False, attention=False, chunks=False)) == [
        Economy(offloaded_layers=True)
    ]
    assert way_down(1, Possible(evict=False, attention=False, chunks=False, offload=False)) == []


def test_decoding_halves_its_tiles_down_to_the_smallest():
    found, economy = [], Economy(evict_idle=True)
    while (less := decoded_with_less(economy, 1000, 300, Possible())) is not None:
        found.append(less.decode_bytes)
        economy = less
    assert found == [500, 300]
    assert decoded_with_less(Economy(), 1000, 300, Possible()) == Economy(evict_idle=True)
    assert decoded_with_less(Economy(), 300, 300, Possible(evict=False)) is None
    assert decoded_with_less(Economy(decode_bytes=4000), 1000, 300, Possible(evict=False)) == Economy(decode_bytes=500)


def test_reading_can_only_send_away_what_is_idle():
    assert read_with_less(Economy(), Possible()) == Economy(evict_idle=True)
    assert read_with_less(Economy(evict_idle=True), Possible()) is None
    assert read_with_less(Economy(), Possible(evict=False)) is None


def test_it_reads_as_a_sentence():
    economy = Economy(
        evict_idle=True,
        rows=1,
        attention_in_parts=True,
        feed_forward_chunks=4,
        offloaded_layers=True,
        decode_bytes=2**20,
    )
    assert str(economy) == (
        "idle networks leave memory, at most 1 row in a forward, attention in parts, "
        "feed-forward layers in 4 parts, layers are in memory only while they work, decoding in tiles within 1.0 MB"
    )
    said = str(StepDown(unit=3, reason="a forward of 2 rows ran out of memory (no room)", economy=Economy(rows=1)))
    assert said == "a forward of 2 rows ran out of memory (no room): at most 1 row in a forward"


@pytest.mark.parametrize("field", ["rows", "feed_forward_chunks", "decode_bytes"])
def test_nothing_is_done_less_than_once(field):
    with pytest.raises(InvalidInput, match=f"economy.{field} is 0, expected at least 1"):
        Economy(**{field: 0})
