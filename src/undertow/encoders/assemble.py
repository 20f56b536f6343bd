"""A syntax tree through one text network: text by chunks, blends mixed, joined prompts side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undertow.encoders.chunks import Chunk, Division, Token, close, describe, divide, tokenize
from undertow.encoders.clip import Hidden, OutputSelection, TextEncoder
from undertow.encoders.emphasis import Tokens, Weighing, mixed
from undertow.encoders.encoding import EncoderReport
from undertow.encoders.inversion import Inversions
from undertow.encoders.prompts.tree import Blend, Joined, Node, fragments
from undertow.encoders.reading import Reading, blended, joined

Context = Float[Tensor, "1 tokens dim"]
Pooled = Float[Tensor, "1 pooled_dim"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One encoder's share of an encoding."""

    context: Context
    pooled: Pooled | None
    reports: tuple[EncoderReport, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How prompts are encoded. merge: see `Dialect`. names: whether a word can be the name of an embedding."""

    emphasis: Callable[[Weighing], Tokens]
    division: Division = field(default_factory=Division)
    merge: bool = True
    names: bool = True


@dataclass(frozen=True)
class Assembler:
    """One encoder, what is read from it, and the rules of one request."""

    encoder: TextEncoder
    selection: OutputSelection
    inversions: Inversions
    rules: Rules

    def encode(self, tree: Node) -> Part:
        """The tree's embeddings. Errors: `InvalidInput` for a tree that must be resolved first."""
        match tree:
            case Blend():
                return self._blend(tree)
            case Joined(parts, weights):
                return self._join([self.encode(part) for part in parts], weights)
            case _:
                return self._text(tree)

    def padded(self, part: Part, tokens: int) -> Part:
        """`part` with empty chunks behind it, up to `tokens` places."""
        if part.context.shape[1] == tokens:
            return part
        empty = self._empty.tokens
        missing = (tokens - part.context.shape[1]) // empty.shape[1]
        context = torch.cat([part.context, *[empty] * missing], dim=1)
        return Part(context=context, pooled=part.pooled, reports=part.reports)

    def read(self, tree: Node) -> Reading:
        """What each token of the context says; no network runs. Errors: as `encode`."""
        match tree:
            case Blend(parts=parts):
                readings = [self.read(part) for part in parts]
                longest = max(len(one.kinds) for one in readings)
                return blended([self.read_to(one, longest) for one in readings])
            case Joined(parts=parts):
                return joined([self.read(part) for part in parts])
            case _:
                return Reading.of_chunks(self._chunks(tree)[0], self.encoder.tokenizer)

    def read_to(self, reading: Reading, tokens: int) -> Reading:
        """The reading with empty chunks behind it, up to `tokens` places."""
        empty = Reading.of_chunks([close((), self.encoder)], self.encoder.tokenizer)
        return joined([reading, *[empty] * ((tokens - len(reading.kinds)) // len(empty.kinds))])

    def _chunks(self, tree: Node) -> tuple[list[Chunk], list[Token], list[str]]:
        """The chunks of a text, the tokens that were cut off, and notes."""
        parts = fragments(tree, merge=self.rules.merge)
        runs, notes = tokenize(parts, self.encoder, self.inversions, names=self.rules.names)
        return *divide(runs, self.encoder, self.rules.division), notes

    def _text(self, tree: Node) -> Part:
        chunks, cut, notes = self._chunks(tree)
        hidden = self._run(chunks)
        # Where nothing is weighted, no rule may change a bit.
        tokens = self._weigh(chunks, hidden.tokens) if any(chunk.weighted for chunk in chunks) else hidden.tokens
        report = EncoderReport(
            kind=self.encoder.kind,
            tokens=sum(token.fragment >= 0 for chunk in chunks for token in chunk.tokens),
            chunks=len(chunks),
            truncated=describe(cut, self.encoder),
            notes=tuple(notes),
        )
        # The pooled vector is the first chunk's and knows no weights, as in A1111 and ComfyUI.
        pooled = None if hidden.pooled is None else hidden.pooled[:1]
        return Part(context=tokens.flatten(0, 1)[None], pooled=pooled, reports=(report,))

    def _blend(self, tree: Blend) -> Part:
        tree.require_sum()
        weights = list(tree.weights)
        parts = [self.encode(part) for part in tree.parts]
        longest = max(part.context.shape[1] for part in parts)
        context = mixed([self.padded(part, longest).context for part in parts], weights, normalize=tree.normalize)
        pools = [part.pooled for part in parts if part.pooled is not None]
        return Part(
            context=context,
            pooled=mixed(pools, weights, normalize=tree.normalize) if pools else None,
            reports=_reports(parts),
        )

    def _join(self, parts: Sequence[Part], weights: Sequence[float]) -> Part:
        """Side by side; a weight moves a prompt away from the empty one, or back to it."""
        contexts: list[Tensor] = []
        for part, weight in zip(parts, weights, strict=True):
            if weight == 1.0:
                contexts.append(part.context)
                continue
            empty = self._empty.tokens.repeat(1, part.context.shape[1] // self._empty.tokens.shape[1], 1)
            contexts.append(empty + (part.context - empty) * weight)
        return Part(context=torch.cat(contexts, dim=1), pooled=parts[0].pooled, reports=_reports(parts))

    def _weigh(self, chunks: Sequence[Chunk], hidden: Tokens) -> Tokens:
        weights = [[token.weight for token in chunk.tokens] for chunk in chunks]
        sources = [[token.fragment for token in chunk.tokens] for chunk in chunks]
        return self.rules.emphasis(
            Weighing(
                hidden=hidden,
                weights=torch.tensor(weights, dtype=hidden.dtype, device=hidden.device),
                fragments=torch.tensor(sources, device=hidden.device),
                empty=lambda: self._empty.tokens,
                without=lambda visible: self._run(chunks, visible).tokens,
            )
        )

    @cached_property
    def _empty(self) -> Hidden:
        return self._run([close((), self.encoder)])

    def _run(self, chunks: Sequence[Chunk], visible: Bool[Tensor, "chunks tokens"] | None = None) -> Hidden:
        device = self.encoder.device
        ids = torch.tensor([[token.id for token in chunk.tokens] for chunk in chunks], device=device)
        vectors = [
            (row, place, token.vector)
            for row, chunk in enumerate(chunks)
            for place, token in enumerate(chunk.tokens)
            if token.vector is not None
        ]
        if not vectors:
            return self.encoder(ids, self.selection, visible=visible)
        replaced = torch.zeros(*ids.shape, self.encoder.config.width, device=device, dtype=self.encoder.dtype)
        replace_at = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        for row, place, (name, index) in vectors:
            replaced[row, place] = self.inversions.vectors(name, self.encoder.kind)[index].to(replaced)
            replace_at[row, place] = True
        return self.encoder(ids, self.selection, replaced=replaced, replace_at=replace_at, visible=visible)


def _reports(parts: Sequence[Part]) -> tuple[EncoderReport, ...]:
    return tuple(report for part in parts for report in part.reports)
