"""Guidance: which evaluations of the network a request needs, and how they become one estimate.

Start at `branches` (the words) and `methods` (what a method is, and how `Guidance` puts several in order).
"""

from undertow.diffusion.guidance.branches import (
    CONDITIONAL,
    IMAGE_ONLY,
    UNCONDITIONAL,
    Branch,
    Estimate,
    Evaluation,
    Guided,
    sigmas_at,
)
from undertow.diffusion.guidance.classifier_free import ClassifierFree, Rescale
from undertow.diffusion.guidance.distilled import DualGuidance, EmbeddedScale, embedded_scale
from undertow.diffusion.guidance.methods import During, Guidance, GuidanceRun, Method, Moment, Rule
from undertow.diffusion.guidance.perturbed import PerturbedAttention, SelfAttention, SmoothedEnergy
from undertow.diffusion.guidance.projected import AdaptiveProjected, Tangential, ZeroStar
from undertow.diffusion.guidance.thresholding import DynamicThreshold, Mimic
from undertow.guidance_options.rules import Perturbation
from undertow.guidance_options.steps import Interval, Scale, SigmaInterval, Step, StepInterval

__all__ = [
    "CONDITIONAL",
    "IMAGE_ONLY",
    "UNCONDITIONAL",
    "AdaptiveProjected",
    "Branch",
    "ClassifierFree",
    "DualGuidance",
    "During",
    "DynamicThreshold",
    "EmbeddedScale",
    "Estimate",
    "Evaluation",
    "Guidance",
    "GuidanceRun",
    "Guided",
    "Interval",
    "Method",
    "Mimic",
    "Moment",
    "Perturbation",
    "PerturbedAttention",
    "Rescale",
    "Rule",
    "Scale",
    "SelfAttention",
    "SigmaInterval",
    "SmoothedEnergy",
    "Step",
    "StepInterval",
    "Tangential",
    "ZeroStar",
    "embedded_scale",
    "sigmas_at",
]
