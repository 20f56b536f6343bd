"""LoRA that were made for few steps, in a request of many."""

from collections.abc import Iterator, Sequence

from undertow.adapters.kind import ResolvedAdapter
from undertow.adapters.lora.kind import ResolvedLora
from undertow.checkpoints.identify.few_steps import SUITS_ADAPTERS, few_steps_in_name
from undertow.engine.guidance_method import named_methods
from undertow.engine.request import GenerationRequest
from undertow.unet.config import UNetConfig

MOST_STEPS, MOST_GUIDANCE = 8, 2.0
"""Such LoRA are drawn with 1 to 8 steps and a guidance scale from 1 to 2 (arXiv:2311.05556)."""


def few_step_notes(
    request: GenerationRequest, config: UNetConfig, resolved: Sequence[ResolvedAdapter]
) -> Iterator[str]:
    """What suits each LoRA whose name says that it was distilled to few steps, where the request asks for more. config:
    of the network that is guided."""
    for one in resolved:
        title = one.adapter.title
        if not (isinstance(one, ResolvedLora) and any(one.adapter.scales) and few_steps_in_name(title)):
            continue
        if request.step_count > MOST_STEPS or _is_guided(request, config):
            yield f"{title} was made for few steps, as its name says: {SUITS_ADAPTERS} suits it"


def _is_guided(request: GenerationRequest, config: UNetConfig) -> bool:
    """Whether a scale acts that is larger than suits such a LoRA."""
    return request.guidance_scale > MOST_GUIDANCE and any(one.takes_scale for one in named_methods(request, config))
