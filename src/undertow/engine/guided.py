"""The guidance of a request (`engine.guidance_method`) as methods that are run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from undertow.diffusion.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    DualGuidance,
    During,
    DynamicThreshold,
    EmbeddedScale,
    Guidance,
    Method,
    Mimic,
    PerturbedAttention,
    Rescale,
    SelfAttention,
    SmoothedEnergy,
    StepInterval,
    Tangential,
    ZeroStar,
)
from undertow.engine.guidance_method import NamedMethod, named_methods
from undertow.engine.request import GenerationRequest
from undertow.guidance_options.records import MethodOptions
from undertow.unet.config import UNetConfig
from undertow.unet.free_u import FreeU

KINDS = (
    *(ClassifierFree, AdaptiveProjected, ZeroStar, Tangential, DualGuidance, EmbeddedScale),
    *(PerturbedAttention, SmoothedEnergy, SelfAttention, Rescale, DynamicThreshold, Mimic),
)
BY_OPTIONS: Mapping[type[MethodOptions], type[Method]] = {kind.__bases__[0]: kind for kind in KINDS}
"""Each kind of method by its options, which it extends by what is done with them."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The methods that combine branches, and the change to the decoder, if any."""

    guidance: Guidance
    free_u: FreeU | None = None


def chosen_guidance(request: GenerationRequest, config: UNetConfig, *, unconditional: bool = False) -> Chosen:
    """What `request.guidance_method` says, for this network. unconditional: the sampler wants that estimate too.
    Errors: those of `named_methods`."""
    named = named_methods(request, config)
    methods = tuple(_method(one, one.method) for one in named if not isinstance(one.method, FreeU))
    free_u = next((one.method for one in named if isinstance(one.method, FreeU)), None)
    return Chosen(guidance=Guidance(methods=methods, unconditional=unconditional), free_u=free_u)


def _method(named: NamedMethod, options: MethodOptions) -> Method:
    given = {field.name: getattr(options, field.name) for field in fields(options) if field.init}
    method = BY_OPTIONS[type(options)](**given)
    return method if named.interval == StepInterval() else During(method=method, interval=named.interval)
