"""What the network is told at every step of a request: prompts, negative prompt and micro-conditioning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.encoders.encoding import TextEncoding, WeightedEncoding
from undertow.encoders.reading import Reading, joined
from undertow.encoders.text_stack import TextStack
from undertow.engine.idle import embedding_notes, idle_negative_prompt
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.unet.conditioning import AESTHETIC, NEGATIVE_AESTHETIC, Conditioning
from undertow.unet.config import TextTime, UNetConfig


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The conditionings of one step, a row each: those of the prompts, with their weights, and the unconditional one.

    unconditional: `None` when nobody asks for it: guidance is off and nothing is composed (trap T8).
    regions: prompts for parts of the picture, in the order of the request's. readings: what the tokens of each say, by
    the name of the branch that receives it.
    """

    conditional: tuple[tuple[Conditioning, float], ...]
    unconditional: Conditioning | None
    regions: tuple[Conditioning, ...] = ()
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])

    @property
    def composed(self) -> bool:
        """Whether several prompts, or one with a weight, make up the conditional estimate (A1111's AND)."""
        return len(self.conditional) > 1 or any(weight != 1 for _, weight in self.conditional)


@dataclass(kw_only=True)
class Conditioner:
    """Turns a request's texts into the branches of each step; `decisions` tells what it chose by itself. text,
    region_texts: who reads the prompts, and those of regions."""

    text: TextStack
    region_texts: Sequence[TextStack]
    config: UNetConfig
    request: GenerationRequest
    size: tuple[int, int]
    needs_unconditional: bool
    region_masks: Sequence[Tensor] = ()
    dtype: torch.dtype
    device: torch.device
    decisions: list[str] = field(default_factory=list)
    _made: dict[tuple[int, bool], Conditioning] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.text.width != self.config.context_dim:
            raise InvalidInput(
                "text encoders",
                f"{self.text.width} wide",
                f"{self.config.context_dim}, the width this U-Net reads",
                "use the text encoders of the same model",
            )

    def branches(self, steps: int) -> list[Branches]:
        """One for every step; A1111's editing, alternation and AND make them differ. Errors: `PromptError`."""
        request, steps = self.request, max(1, steps)
        unknown = [name for name in request.embeddings if not self.text.knows_embedding(name)]
        if unknown:
            raise InvalidInput(
                "embeddings",
                ", ".join(map(repr, unknown)),
                f"names of those that were added: {', '.join(self.text.embeddings) or 'none was'}",
                "add it with --embedding FILE, or service.add_embedding",
            )
        conditional = self._encode(self.text, request.prompt, steps, composition=True)
        negative = self._encode(self.text, request.negative_prompt, steps, drawn=False)
        readers = zip(self.region_texts, request.regions, strict=True)
        regions = [self._encode(text, region.prompt, steps) for text, region in readers]
        for line in embedding_notes(request, self.text):
            self._decide(line)
        found = [
            self._branches(conditional[step], negative[step][0], [region[step][0] for region in regions])
            for step in range(steps)
        ]
        if request.negative_prompt and all(one.unconditional is None for one in found):
            self._decide(idle_negative_prompt(request, distilled=self.config.guidance_dim is not None))
        return found

    def _encode(
        self, reader: TextStack, text: str, steps: int, *, composition: bool = False, drawn: bool = True
    ) -> tuple[tuple[WeightedEncoding, ...], ...]:
        request = self.request
        encodings = reader.encode_steps(
            text, steps, dialect=request.dialect, clip_skip=request.clip_skip, composition=composition
        )
        unlike = {id(one.encoding): one.encoding for step in encodings for one in step}
        for encoding in unlike.values():
            for line in encoding.notes:
                if drawn or line != encoding.report.placement:
                    self._decide(line)
        return encodings

    def _branches(
        self, conditional: Sequence[WeightedEncoding], negative: WeightedEncoding, regions: Sequence[WeightedEncoding]
    ) -> Branches:
        rows = tuple((self._conditioning(one.encoding), one.weight) for one in conditional)
        parts = tuple(self._conditioning(region.encoding) for region in regions)
        readings = _readings(conditional, negative, regions, side_by_side=bool(self.region_masks))
        if self.region_masks:
            rows = tuple((side_by_side(row, parts, self.region_masks), weight) for row, weight in rows)
            parts = ()
        branches = Branches(conditional=rows, unconditional=None, regions=parts, readings=readings)
        if not (self.needs_unconditional or branches.composed):
            return branches
        return replace(branches, unconditional=self._conditioning(negative.encoding, negative=True))

    def _conditioning(self, encoding: TextEncoding, *, negative: bool = False) -> Conditioning:
        """One for each encoding: steps that share a text share it too."""
        key = (id(encoding), negative)
        if key not in self._made:
            self._made[key] = self._make(encoding, negative=negative)
        return self._made[key]

    def _make(self, encoding: TextEncoding, *, negative: bool) -> Conditioning:
        context, pooled = encoding.context, encoding.pooled
        if negative and not self.request.negative_prompt and self._zeros_mean_nothing:
            self._decide("an empty negative prompt is zeros, not an encoded empty text, as in SDXL's own pipeline")
            context = torch.zeros_like(context)
            pooled = None if pooled is None else torch.zeros_like(pooled)
        if not isinstance(self.config.added, TextTime):
            pooled = None
        return Conditioning(
            context=context, context_mask=encoding.mask, pooled=pooled, time_ids=self._time_ids(negative=negative)
        ).to(device=self.device, dtype=self.dtype)

    @property
    def _zeros_mean_nothing(self) -> bool:
        return isinstance(self.config.added, TextTime) and not self.config.added.scored

    def _time_ids(self, *, negative: bool) -> torch.Tensor | None:
        if not isinstance(self.config.added, TextTime):
            return None
        request = self.request
        original = self.size if request.original_size is None else request.original_size
        if self.config.added.scored:
            ids: Sequence[float] = (*original, *request.crop, NEGATIVE_AESTHETIC if negative else AESTHETIC)
        else:
            ids = (*original, *request.crop, *(self.size if request.target_size is None else request.target_size))
        return torch.tensor([ids], dtype=torch.float32)

    def _decide(self, line: str) -> None:
        if line not in self.decisions:
            self.decisions.append(line)


def names_of_prompts(count: int) -> list[str]:
    """Of the branches of a request's prompt, or of several that are composed."""
    return ["cond" if count == 1 else f"cond_{index}" for index in range(count)]


def _readings(
    conditional: Sequence[WeightedEncoding],
    negative: WeightedEncoding,
    regions: Sequence[WeightedEncoding],
    *,
    side_by_side: bool,
) -> dict[str, Reading]:
    """What tokens say, by the names of branches. side_by_side: the tokens of regions follow those of each prompt."""
    prompts, parts = ([one.encoding.reading for one in each] for each in (conditional, regions))
    if side_by_side:
        prompts, parts = [joined([one, *parts]) for one in prompts], []
    found = dict(zip(names_of_prompts(len(prompts)), prompts, strict=True))
    return found | {"uncond": negative.encoding.reading} | {f"region_{index}": one for index, one in enumerate(parts)}


def side_by_side(
    everywhere: Conditioning, parts: Sequence[Conditioning], masks: Sequence[Float[Tensor, "1 1 height width"]]
) -> Conditioning:
    """One conditioning with the tokens of all prompts: a part's are seen where its mask is, those of the prompt for
    everywhere wherever no part is."""
    contexts = [part.context for part in (everywhere, *parts) if part.context is not None]
    assert len(contexts) == len(parts) + 1  # every text has one
    covered = torch.cat([mask > 0 for mask in masks])  # [parts, 1, height, width]
    shown = [~covered.any(0, keepdim=True), *covered.split(1)]
    regions = [part.expand(-1, context.shape[1], -1, -1) for part, context in zip(shown, contexts, strict=True)]
    masked = any(part.context_mask is not None for part in (everywhere, *parts))
    return replace(
        everywhere,
        context=torch.cat(contexts, dim=1),
        context_mask=torch.cat([_mask(part) for part in (everywhere, *parts)], dim=1) if masked else None,
        regions=torch.cat(regions, dim=1).to(contexts[0].device),
    )


def _mask(part: Conditioning) -> Tensor:
    assert part.context is not None
    return torch.ones(part.context.shape[:2], dtype=torch.bool) if part.context_mask is None else part.context_mask
