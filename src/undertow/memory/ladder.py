"""How a request gives way when memory runs out, step by step; pure functions over records.

The order is that of what it costs: what is idle leaves memory first, then fewer rows share a forward, then attention
that writes its scores out and feed-forward layers compute in parts, then layers are brought in one after the other;
pictures are decoded in exact tiles. Nothing of it changes a picture beyond rounding, and what is done at which point is
written down, so that the same request with the same course has the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from undertow.errors import InvalidInput
from undertow.shortage import size_in_words

MOST_CHUNKS = 8
"""Parts of the tokens of a feed-forward layer: with more, other activations are larger than what is saved."""


@dataclass(frozen=True, kw_only=True)
class Economy:
    """What is done to need less memory.

    evict_idle: networks that do not work leave the device. rows: the most rows of a forward. attention_in_parts:
    attention computes parts of its queries one after the other (`attention.in_parts`). feed_forward_chunks: parts in
    which feed-forward layers compute their tokens. offloaded_layers: the U-Net's layers are in memory only while
    they work. decode_bytes: activations that decoding a picture may hold, or the least that its size needs. Errors:
    `InvalidInput`.
    """

    evict_idle: bool = False
    rows: int | None = None
    attention_in_parts: bool = False
    feed_forward_chunks: int = 1
    offloaded_layers: bool = False
    decode_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "feed_forward_chunks", "decode_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"economy.{name}", value, "at least 1")

    def __str__(self) -> str:
        return ", ".join(self._words())

    def _words(self) -> Iterator[str]:
        if self.evict_idle:
            yield "idle networks leave memory"
        if self.rows is not None:
            yield f"at most {self.rows} row{'' if self.rows == 1 else 's'} in a forward"
        if self.attention_in_parts:
            yield "attention in parts"
        if self.feed_forward_chunks > 1:
            yield f"feed-forward layers in {self.feed_forward_chunks} parts"
        if self.offloaded_layers:
            yield "layers are in memory only while they work"
        if self.decode_bytes is not None:
            yield f"decoding in tiles within {size_in_words(self.decode_bytes)}"


@dataclass(frozen=True, kw_only=True)
class StepDown:
    """A point from which on a request was drawn with less memory. unit: how many units of its work (shared forwards,
    decoded pictures) were done before. reason: what ran out of memory, and what was said. economy: what was done from
    there on."""

    unit: int
    reason: str
    economy: Economy

    def __str__(self) -> str:
        return f"{self.reason}: {self.economy}"


@dataclass(frozen=True, kw_only=True)
class Possible:
    """What can be done here. evict: something idle is in memory that can be read again. fewer_rows: the number of rows
    is not fixed. attention: a kernel writes scores out, and the runner allows another graph. chunks: the runner allows
    it. offload: layers can be read again, and nothing is merged into
    them."""

    evict: bool = True
    fewer_rows: bool = True
    attention: bool = True
    chunks: bool = True
    offload: bool = True


def drawn_with_less(economy: Economy, rows: int, possible: Possible) -> Economy | None:
    """The next step down after a forward of this many rows ran out of memory; `None` when nothing is left."""
    if possible.evict and not economy.evict_idle:
        return replace(economy, evict_idle=True)
    if possible.fewer_rows and rows > 1:
        return replace(economy, rows=rows // 2)
    if possible.attention and not economy.attention_in_parts:
        return replace(economy, attention_in_parts=True)
    if possible.chunks and economy.feed_forward_chunks < MOST_CHUNKS:
        return replace(economy, feed_forward_chunks=2 * economy.feed_forward_chunks)
    if possible.offload and not economy.offloaded_layers:
        return replace(economy, offloaded_layers=True)
    return None


def decoded_with_less(economy: Economy, whole_bytes: int, least_bytes: int, possible: Possible) -> Economy | None:
    """The next step down after decoding ran out of memory; `None` when nothing is left. whole_bytes, least_bytes: of
    activations, without tiles and in the smallest."""
    if possible.evict and not economy.evict_idle:
        return replace(economy, evict_idle=True)
    now = whole_bytes if economy.decode_bytes is None else min(economy.decode_bytes, whole_bytes)
    if now <= least_bytes:
        return None
    return replace(economy, decode_bytes=max(now // 2, least_bytes))


def read_with_less(economy: Economy, possible: Possible) -> Economy | None:
    """The next step down after reading prompts and pictures ran out of memory; `None` when nothing is left."""
    return replace(economy, evict_idle=True) if possible.evict and not economy.evict_idle else None
