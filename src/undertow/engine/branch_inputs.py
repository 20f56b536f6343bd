"""What the network receives for each branch of guidance: the prompts, regions and adapters of a step."""

from dataclasses import replace

import torch

from undertow.diffusion.guidance import Branch, Step
from undertow.engine.conditioning import Branches, names_of_prompts
from undertow.engine.evaluation import BranchInput
from undertow.engine.passes import Pass
from undertow.unet.conditioning import Conditioning


def branch_inputs(one: Pass, texts: Branches, branch: Branch, scale: float | None, step: Step) -> list[BranchInput]:
    """What the network receives for a branch: one input for each prompt and region, or one for the negative prompt.
    scale: of guidance, for networks that take it as an input."""
    if branch.side == "conditional":
        # The bottleneck's attention is that of the request's own prompt.
        prompts = () if one.composition.covered and not branch.observed else texts.conditional
        names = names_of_prompts(len(prompts))
        asked = [(name, conditional, None) for name, (conditional, _) in zip(names, prompts, strict=True)]
        asked += [(f"region_{index}", conditioning, index) for index, conditioning in enumerate(texts.regions)]
    else:
        assert texts.unconditional is not None  # passes are prepared with what their guidance asks for
        asked = [("uncond" if branch.side == "unconditional" else "image", texts.unconditional, None)]
    sees_no_picture = branch.side == "unconditional" and one.without_image is not None
    extra = one.without_image if sees_no_picture else one.extra
    suffix = "" if branch.perturbation is None else f"_{branch.perturbation.kind}"
    return [
        BranchInput(
            name=name + suffix,
            conditioning=conditioning if scale is None else _with_scale(conditioning, scale),
            extra=extra,
            adapters=()
            if one.adapters is None
            else one.adapters.at(step.index, step.count, region=region, conditional=branch.side == "conditional"),
            perturbation=branch.perturbation,
            observed=branch.observed,
            reading=texts.readings.get("uncond" if name == "image" else name),
        )
        for name, conditioning, region in asked
    ]


def _with_scale(conditioning: Conditioning, scale: float) -> Conditioning:
    """With the guidance scale as an input (LCM)."""
    assert conditioning.context is not None  # text conditions every network that takes it
    return replace(conditioning, guidance=torch.tensor([scale], device=conditioning.context.device))
