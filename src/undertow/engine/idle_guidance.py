"""Guidance methods of a request that leave every estimate as it is, with the reason."""

from collections.abc import Collection, Iterator, Sequence

from undertow.diffusion.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    During,
    PerturbedAttention,
    Rescale,
    SelfAttention,
    SmoothedEnergy,
    Step,
    StepInterval,
    Tangential,
    ZeroStar,
)
from undertow.diffusion.guidance.scales import scale_at
from undertow.engine.guided import NamedMethod
from undertow.unet.free_u import FreeU

AWAY = PerturbedAttention | SmoothedEnergy | SelfAttention
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
    method, interval = _apart(methods[place])
    if not interval.holds(step):
        return False
    match method:
        case ClassifierFree(scale=scale) | AdaptiveProjected(scale=scale) | Tangential(scale=scale):
            return scale_at(scale, step) != 1
        case ZeroStar(scale=scale, zero_steps=zero_steps):
            return step.index < zero_steps or scale_at(scale, step) != 1
        case PerturbedAttention(scale=scale) | SmoothedEnergy(scale=scale) | SelfAttention(scale=scale):
            return scale_at(scale, step) != 0
        case Rescale():  # to the deviation of the estimate that no method has changed yet
            changing = (other for other in range(place) if not isinstance(methods[other].method, FreeU))
            return any(_acts(methods, other, step) for other in changing)
        case _:
            return True


def _reason(each: NamedMethod, guidance_scale: float, steps: Collection[Step]) -> str:
    method, interval = _apart(each)
    if not any(interval.holds(step) for step in steps):
        count = max(step.count for step in steps)
        return f"in {count} steps: no whole one lies from {interval.start:g} to {interval.end:g} of them"
    if each.takes_scale or (isinstance(method, Rescale) and guidance_scale == 1):
        return f"with guidance_scale {guidance_scale:g}"
    return "without guidance" if isinstance(method, Rescale) else f"with a scale of {int(not isinstance(method, AWAY))}"


def _apart(each: NamedMethod) -> tuple[object, StepInterval]:
    """A method, and when it holds."""
    method = each.method
    if isinstance(method, During) and isinstance(method.interval, StepInterval):
        return method.method, method.interval
    return method, StepInterval()
