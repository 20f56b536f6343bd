"""Guidance methods of a request that leave every estimate as it is, with the reason."""

from collections.abc import Collection, Iterator, Sequence

from undertow.engine.guidance_method import NamedMethod
from undertow.guidance_options.records import (
    ClassifierFreeOptions,
    DualGuidanceOptions,
    EmbeddedScaleOptions,
    PerturbedAttentionOptions,
    RescaleOptions,
    SelfAttentionOptions,
    SmoothedEnergyOptions,
    ZeroStarOptions,
)
from undertow.guidance_options.steps import Step, scale_at
from undertow.unet.free_u import FreeU

AWAY = PerturbedAttentionOptions | SmoothedEnergyOptions | SelfAttentionOptions
"""Terms that add nothing at a scale of 0."""


def idle_guidance(methods: Sequence[NamedMethod], guidance_scale: float, passes: Collection[int]) -> Iterator[str]:
    """A sentence for each reason. methods: of a request, in their order. guidance_scale: of the request. passes: the
    steps of each.

    What stands in a request by default is not noted: its scale of 1 says that there is no guidance.
    """
    steps = [Step(index=index, count=count, sigma=0.0) for count in passes for index in range(count)]
    if not steps:  # a strength of 0, which is said by itself
        return
    idle: dict[str, list[str]] = {}
    for place, each in enumerate(methods):
        if each.name == "none" or (each.name == "cfg" and not each.options):
            continue
        if not any(_acts(methods, place, step) for step in steps):
            idle.setdefault(_reason(each, guidance_scale, steps), []).append(repr(each.name))
    for reason, names in idle.items():
        yield f"guidance_method {' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect {reason}"


def _acts(methods: Sequence[NamedMethod], place: int, step: Step) -> bool:
    """Whether a method changes the estimate of a step."""
    if not methods[place].interval.holds(step):
        return False
    match methods[place].method:
        case EmbeddedScaleOptions() | DualGuidanceOptions():
            return True
        case ZeroStarOptions(scale=scale, zero_steps=zero_steps):
            return step.index < zero_steps or scale_at(scale, step) != 1
        case ClassifierFreeOptions(scale=scale):  # and those that are like it
            return scale_at(scale, step) != 1
        case (
            PerturbedAttentionOptions(scale=scale)
            | SmoothedEnergyOptions(scale=scale)
            | SelfAttentionOptions(scale=scale)
        ):
            return scale_at(scale, step) != 0
        case RescaleOptions():  # to the deviation of the estimate that no method has changed yet
            changing = (other for other in range(place) if not isinstance(methods[other].method, FreeU))
            return any(_acts(methods, other, step) for other in changing)
        case _:
            return True


def _reason(each: NamedMethod, guidance_scale: float, steps: Collection[Step]) -> str:
    method, interval = each.method, each.interval
    if not any(interval.holds(step) for step in steps):
        count = max(step.count for step in steps)
        return f"in {count} steps: no whole one lies from {interval.start:g} to {interval.end:g} of them"
    rescales = isinstance(method, RescaleOptions)
    if each.takes_scale or (rescales and guidance_scale == 1):
        return f"with guidance_scale {guidance_scale:g}"
    return "without guidance" if rescales else f"with a scale of {int(not isinstance(method, AWAY))}"
