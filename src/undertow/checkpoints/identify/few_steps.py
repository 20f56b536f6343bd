"""Models and LoRA that were distilled to few steps: what tells them, and what they are best drawn with. Imports no
torch."""

from collections.abc import Container, Mapping

from undertow.unet.config import UNetConfig

FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
"""diffusers' classes that draw with nothing but consistency models."""

SUGGESTED_STEPS = 4
"""LCM (arXiv:2310.04378) and ECT (arXiv:2406.14548) show 1 to 8, and gain little beyond 4."""

SUGGESTED: Mapping[str, float] = {"steps": SUGGESTED_STEPS, "guidance_scale": 1.0}
"""Of weights whose guidance was distilled too."""


FEW_STEP_WORDS = ("lcm", "turbo", "lightning", "hyper-sd", "hypersd", "tcd")
"""In the names of what was distilled to few steps."""

ADAPTED: Mapping[str, str | float] = {
    "sampler": "lcm",
    "schedule": "sgm_uniform",
    "steps": SUGGESTED_STEPS,
    "guidance_scale": 1.0,
}
"""Fields of a request that suit a LoRA for few steps: the model that it acts on names its own sampler and scale."""

SUITS_ADAPTERS = "--sampler lcm --schedule sgm_uniform --steps 4 --guidance 1"
"""The same, as it is typed."""


def few_steps_in_name(name: str) -> str:
    """The word in a model's or an adapter's name that says so; empty where none does."""
    return next((word for word in FEW_STEP_WORDS if word in name.lower()), "")


def why_few_steps(unet: UNetConfig, scheduler: str | None) -> str:
    """Why a model counts as distilled to few steps; empty where nothing says so. scheduler: diffusers' class that its
    folder names, `None` without one."""
    if unet.guidance_dim is not None:
        return "the U-Net has a guidance embedding, as LCM have"
    return f"its folder draws with {scheduler}" if scheduler in FEW_STEP_SCHEDULERS else ""


def suggested_fields(unet: UNetConfig, scheduler: str | None) -> dict[str, float]:
    """Fields of a request that a model is best drawn with; nothing where the defaults are right.

    A U-Net with a guidance embedding was trained on scales above 1 and is told one, so it keeps the default.
    """
    if not why_few_steps(unet, scheduler):
        return {}
    return dict(SUGGESTED) if unet.guidance_dim is None else {"steps": SUGGESTED_STEPS}


def left_to_model(suggested: dict[str, float], given: Container[str]) -> dict[str, float]:
    """What of a model's suggestions acts on a request of which these fields are given; sigmas take the place of
    steps."""
    idle = {"steps"} if "sigmas" in given else set[str]()
    return {name: value for name, value in suggested.items() if name not in given and name not in idle}
