"""How many rows of a forward one picture asks for at a time, before anything of it is encoded."""

from undertow.diffusion.guidance import Step
from undertow.engine.guided import chosen_guidance
from undertow.engine.request import GenerationRequest
from undertow.unet.config import UNetConfig

COMPOSED = " AND "
"""Between prompts that each have an estimate of their own (A1111)."""


def rows_of_picture(request: GenerationRequest, config: UNetConfig) -> int:
    """The most rows of any step: one for each branch of guidance (two with a negative prompt, three with one that is
    perturbed), where the prompt's are one for each prompt that is composed and each region that has an estimate of its
    own. Not more than these; windows (`views`) come on top. Errors: those of `chosen_guidance`."""
    guidance = chosen_guidance(request, config).guidance
    regions = len(request.regions) if request.regions_by == "estimates" else 0
    conditional = request.prompt.count(COMPOSED) + 1 + regions
    count = max(1, request.drawn_steps)
    return max(
        sum(conditional if branch.side == "conditional" else 1 for branch in guidance.branches(step))
        for step in (Step(index=index, count=count, sigma=1.0) for index in range(count))
    )
