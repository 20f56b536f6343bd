"""Guidance: which evaluations of the network a request needs, and how they become one estimate.

Start at `branches` (the words) and `methods` (what a method is, and how `Guidance` puts several in order).
"""

from undertow.diffusion.guidance.branches import (
    IMAGE_ONLY,
    UNCONDITIONAL,
    WANTED,
    Branch,
    Estimate,
    Evaluation,
    Guided,
    Perturbation,
    Step,
)
from undertow.diffusion.guidance.classifier_free import ClassifierFree, Rescale
from undertow.diffusion.guidance.guided_denoiser import GuidedDenoiser
from undertow.diffusion.guidance.methods import During, Guidance, GuidanceRun, Method, Moment, Rule
from undertow.diffusion.guidance.scales import Interval, Scale, SigmaInterval, StepInterval

__all__ = [
    "IMAGE_ONLY",
    "UNCONDITIONAL",
    "WANTED",
    "Branch",
    "ClassifierFree",
    "During",
    "Estimate",
    "Evaluation",
    "Guidance",
    "GuidanceRun",
    "Guided",
    "GuidedDenoiser",
    "Interval",
    "Method",
    "Moment",
    "Perturbation",
    "Rescale",
    "Rule",
    "Scale",
    "SigmaInterval",
    "Step",
    "StepInterval",
]
