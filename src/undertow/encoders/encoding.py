"""What a text becomes, and the account of how."""

import re
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from undertow.encoders.clip_config import Kind
from undertow.encoders.prompts.tree import Tag
from undertow.encoders.reading import Reading

TAGS_TOLD = 8
"""Tags that are told one by one."""

_NUMBER = re.compile(r"-?\d*\.?\d+")


@dataclass(frozen=True, kw_only=True)
class EncoderReport:
    """One encoder's account. tokens: how many of the text's were encoded. truncated: what was cut, as tokens say it."""

    kind: Kind
    tokens: int
    chunks: int
    truncated: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """tags: what the prompt asks for besides text, for the caller to act on. placement: what a picture of the text may
    lack, said of prompts for pictures and not of negative ones. cached: nothing had to be computed."""

    encoders: tuple[EncoderReport, ...]
    notes: tuple[str, ...] = ()
    tags: tuple[Tag, ...] = ()
    placement: str = ""
    cached: bool = False

    @property
    def truncated(self) -> str:
        """What the first encoder that cut something cut off; empty when everything was encoded."""
        return next((report.truncated for report in self.encoders if report.truncated), "")


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """Conditioning from a prompt: `context` for cross-attention, 77 tokens for each chunk; `pooled` for SDXL.

    mask: None, since Stable Diffusion reads padding as well. reading: what each token of the context says; of two
    encoders the first one's. The tensors may be shared with a cache: do not write to them.
    """

    context: Float[Tensor, "1 tokens dim"]
    mask: Bool[Tensor, "1 tokens"] | None = None
    pooled: Float[Tensor, "1 pooled_dim"] | None = None
    report: TextReport
    reading: Reading

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the encoding, a sentence each; usually nothing."""
        cut = tuple(f"too long for {r.kind}, cut off: {r.truncated!r}" for r in self.report.encoders if r.truncated)
        tags = [_told(tag) for tag in self.report.tags[:TAGS_TOLD]]
        if len(self.report.tags) > TAGS_TOLD:
            tags.append(f"taken out of the prompt, and without effect: {len(self.report.tags) - TAGS_TOLD:,} more tags")
        placement = (self.report.placement,) if self.report.placement else ()
        return (*cut, *tags, *self.report.notes, *placement)


@dataclass(frozen=True, kw_only=True)
class WeightedEncoding:
    """One prompt of a composition: `weight` multiplies its guidance (see `prompts.resolve`)."""

    encoding: TextEncoding
    weight: float = 1.0


def _told(tag: Tag) -> str:
    line = f"taken out of the prompt, and without effect: {' '.join((tag.kind, *tag.arguments))}"
    if tag.kind != "lora":
        return line
    name, *numbers = tag.arguments
    scale = next(filter(_NUMBER.fullmatch, numbers), "1")  # others, such as "te=0.5", have no short form here
    return f"{line}; prompts choose no files: --lora {name}@{scale}, or Adapter({name!r}, scale={scale})"
