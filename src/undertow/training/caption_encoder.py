"""Captions as a model's U-Net reads them, by frozen text encoders once, or by encoders that learn at every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from undertow.encoders.chunks import Token, close
from undertow.encoders.clip import Hidden, TextEncoder
from undertow.encoders.text_stack import TextStack
from undertow.training.captioned import Crop
from undertow.training.low_rank import TrainableUpdates, adapted_weights
from undertow.unet.conditioning import AESTHETIC, Conditioning
from undertow.unet.config import TextTime, UNetConfig

BATCH_SIZE = 16
"""Captions that frozen encoders read together."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Contexts and, where the U-Net reads one, pooled vectors: a row for each caption."""

    context: Float[Tensor, "count tokens dim"]
    pooled: Float[Tensor, "count pooled_dim"] | None

    def rows(self, index: Int[Tensor, "batch"]) -> "Encoded":
        """Some of the rows, in another order."""
        return Encoded(context=self.context[index], pooled=None if self.pooled is None else self.pooled[index])


@dataclass(frozen=True, kw_only=True)
class CaptionEncoder:
    """A model's text encoders, and what its U-Net reads of them.

    Captions are plain text, cut after 75 tokens. A dropped caption is what the model's sampler takes for no prompt:
    zeros for SDXL base, elsewhere the empty text.
    """

    stack: TextStack
    config: UNetConfig

    @property
    def zeros_mean_nothing(self) -> bool:
        """As SDXL base was trained (generative-models' ucg_rate on zeroed embeddings)."""
        return isinstance(self.config.added, TextTime) and not self.config.added.scored

    def encode(
        self, captions: Sequence[str | None], updates: Sequence[TrainableUpdates] | None = None, gain: float = 1.0
    ) -> Encoded:
        """A row for each caption; `None` is a dropped one. updates: one for each encoder, at this gain."""
        texts = ["" if caption is None else self.stack.spelled(caption) for caption in captions]
        hidden = [
            self._run(encoder, index, texts, None if updates is None else updates[index], gain)
            for index, encoder in enumerate(self.stack.encoders)
        ]
        context = torch.cat([part.tokens for part in hidden], dim=-1)
        pools = [part.pooled for part in hidden if part.pooled is not None]
        pooled = torch.cat(pools, dim=-1) if pools and isinstance(self.config.added, TextTime) else None
        if self.zeros_mean_nothing:
            kept = torch.tensor([caption is not None for caption in captions], device=context.device)
            context = context * kept[:, None, None]
            pooled = None if pooled is None else pooled * kept[:, None]
        return Encoded(context=context, pooled=pooled)

    @torch.no_grad()
    def encode_once(self, captions: Sequence[str | None]) -> Encoded:
        """`encode` by the encoders as they are, a few captions at a time."""
        parts = [self.encode(captions[start : start + BATCH_SIZE]) for start in range(0, len(captions), BATCH_SIZE)]
        pools = [part.pooled for part in parts if part.pooled is not None]
        return Encoded(context=torch.cat([part.context for part in parts]), pooled=torch.cat(pools) if pools else None)

    def conditioning(self, encoded: Encoded, crops: Sequence[Crop], size: int) -> Conditioning:
        """What the U-Net receives for pictures of `size` pixels that were cut out so."""
        time_ids = None
        if isinstance(self.config.added, TextTime):
            end = (AESTHETIC,) if self.config.added.scored else (size, size)
            numbers = [(crop.height, crop.width, crop.top, crop.left, *end) for crop in crops]
            time_ids = torch.tensor(numbers, dtype=torch.float32, device=encoded.context.device)
        return Conditioning(context=encoded.context, pooled=encoded.pooled, time_ids=time_ids)

    def _run(
        self, encoder: TextEncoder, index: int, texts: Sequence[str], updates: TrainableUpdates | None, gain: float
    ) -> Hidden:
        ids, selection = token_ids(texts, encoder), self.stack.selections[index]
        if updates is None:
            return encoder(ids, selection)
        return functional_call(encoder, adapted_weights(encoder, updates, gain), (ids, selection))


def token_ids(texts: Sequence[str], encoder: TextEncoder) -> Int[Tensor, "batch tokens"]:
    """Marks around the first tokens of each text, padding behind."""
    room = encoder.config.positions - 2
    bodies = [[Token(id) for id in encoder.tokenizer.encode(text)[:room]] for text in texts]
    return torch.tensor([[token.id for token in close(body, encoder).tokens] for body in bodies], device=encoder.device)
