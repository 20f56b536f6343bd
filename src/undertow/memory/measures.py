"""What can give way so that work fits into less memory, in the order in which it does, cheapest first.

None of these changes what is drawn beyond rounding: rows that share no forward, feed-forward layers and attention in
parts, layers that are brought in one by one, and exact tiles of the VAE compute the same numbers. What does change the
picture (a lower precision, another size) is never taken by itself: it is asked for by name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from undertow.memory.work import Subject, Work

FEED_FORWARD_CHUNKS = (2, 4, 8)
LEAST_DECODE_BYTES = 32 * 2**20
"""Below this budget exact tiles overlap more than they cover."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing that can give way. kind: candidates of the same kind replace each other. work: with it applied."""

    kind: str
    name: str
    apply: Callable[[Work], Work]


def candidates(subject: Subject, work: Work, decode_bytes: int, *, fixed_graphs: bool = False) -> Iterator[Candidate]:
    """All there is to give way for this work, in order. decode_bytes: what decoding takes as it is. fixed_graphs: what
    needs another graph, or hooks inside of one, is left out. Weights into which LoRA are merged stay as they are.

    Order: idle networks, rows of a forward, attention and feed-forward layers in parts, layers one by one, exact tiles.
    """
    yield from _idle(work)
    yield from _rows(work)
    if not fixed_graphs:
        yield from _parts(subject, work)
    stays = work.offloaded_layers or work.training is not None or (work.merged and work.loras)
    if not stays and not fixed_graphs:
        yield Candidate(kind="layers", name="weights brought in layer by layer", apply=_offloaded)
    if subject.vae is not None and work.training is None:
        yield from _tiles(work, decode_bytes)


def _idle(work: Work) -> Iterator[Candidate]:
    if "text" in work.keep:
        kept = tuple(name for name in work.keep if name not in ("text", "image"))
        what = "text and image encoders released once they have read" if work.image_tokens else ""
        name = what or "text encoders released once prompts are encoded"
        yield Candidate(kind="idle", name=name, apply=_keeping(kept))
    if work.keep:
        yield Candidate(kind="idle", name="every network released while it is idle", apply=_keeping(()))


def _rows(work: Work) -> Iterator[Candidate]:
    rows = work.batch
    while rows > 1:
        rows = -(-rows // 2)
        name = "one row of a picture at a time (sequential guidance)" if rows == 1 else f"{rows} rows in one forward"
        yield Candidate(kind="rows", name=name, apply=_in_rows(rows))


def _parts(subject: Subject, work: Work) -> Iterator[Candidate]:
    if subject.unet is None:
        return
    if not work.attention_in_parts and work.holds_scores:
        yield Candidate(kind="attention", name="attention in parts of the queries", apply=_attending_in_parts)
    if subject.unet.context_dim is not None:
        for chunks in FEED_FORWARD_CHUNKS:
            if chunks > work.feed_forward_chunks:
                yield Candidate(
                    kind="feed-forward", name=f"feed-forward layers in {chunks} parts", apply=_fed_forward_in(chunks)
                )


def _tiles(work: Work, decode_bytes: int) -> Iterator[Candidate]:
    budget = decode_bytes if work.decode_bytes is None else min(decode_bytes, work.decode_bytes)
    while budget > LEAST_DECODE_BYTES:
        budget = max(LEAST_DECODE_BYTES, budget // 2)
        yield Candidate(kind="tiles", name="exact tiles of the VAE", apply=_decoded_within(budget))


def _keeping(kept: tuple[str, ...]) -> Callable[[Work], Work]:
    return lambda work: replace(work, keep=kept)


def _in_rows(rows: int) -> Callable[[Work], Work]:
    return lambda work: replace(work, rows=rows)


def _fed_forward_in(chunks: int) -> Callable[[Work], Work]:
    return lambda work: replace(work, feed_forward_chunks=chunks)


def _decoded_within(budget: int) -> Callable[[Work], Work]:
    return lambda work: replace(work, decode_bytes=budget)


def _offloaded(work: Work) -> Work:
    return replace(work, offloaded_layers=True)


def _attending_in_parts(work: Work) -> Work:
    return replace(work, attention_in_parts=True)
