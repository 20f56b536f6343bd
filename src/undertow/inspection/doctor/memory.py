"""Running out of memory, by the forecast and what is free."""

from collections.abc import Iterator
from functools import partial

from undertow.engine.planning import planned
from undertow.errors import UndertowError
from undertow.free_memory import free_bytes
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Change, Seen, rule
from undertow.memory.monitor import memory_of
from undertow.memory.plan import MemoryPlan
from undertow.shortage import size_in_words

TIGHT = 0.9
"""Share of the available memory above which a forecast's error can decide."""

SCORES = 0.25
"""Share of the peak that written-out scores may have."""

memory_rule = partial(rule, family="memory")


def _plan(case: Case, budget_bytes: int | None) -> MemoryPlan:
    request = case.request
    asked = planned(
        case.model,
        size=case.size,
        batch=request.count,
        steps=request.step_count,
        branches=1 if request.guidance_scale == 1 else 2,
        adapters=[one for one, found in case.read_adapters if not isinstance(found, UndertowError)],
        bundled=case.manager.bundled,
        slots=case.manager.slots,
    )
    return asked.plan(budget_bytes)


def _available(case: Case) -> int | None:
    """What the whole process may have: what it has, and what is free besides."""
    free, used = free_bytes(case.unet.device), memory_of(case.unet.device).in_use()
    return None if free is None or used is None else free + used


@memory_rule(
    "does-not-fit",
    symptom="an error for want of memory, or a killed process",
    prevention="undertow plan MODEL --size WIDTHxHEIGHT before a run",
)
def does_not_fit(case: Case) -> Iterator[Seen]:
    """The forecast of the request is above what there is, or close to it."""
    available = _available(case)
    if available is None:
        return
    asked = _plan(case, None)
    if asked.process_bytes <= TIGHT * available:
        return
    within = _plan(case, max(1, int(TIGHT * available)))
    largest = max(asked.stages, key=lambda stage: stage.peak_bytes)
    what = "; ".join(f"{one.name} saves {size_in_words(one.saved_bytes)}" for one in within.measures)
    serious = asked.process_bytes > available
    yield Seen(
        evidence=f"forecast {size_in_words(asked.process_bytes)}, available {size_in_words(available)}; the most in "
        f"{largest.name}, {largest.hotspot.module}: {size_in_words(largest.peak_bytes)}",
        cause="the weights and activations of this request need more than the machine has left"
        if serious
        else "the request fits, with less room than the forecast may be wrong by",
        fix=f"draw with --budget {int(TIGHT * available / 2**20)}MiB ({what})"
        if within.fits
        else f"no measure suffices ({size_in_words(within.smallest_bytes)} is the least): draw smaller or fewer "
        "pictures",
        module=largest.hotspot.module,
        severity="serious" if serious else "warning",
        changes=() if within.fits or case.request.count == 1 else (Change(where="request", name="count", value=1),),
    )


@memory_rule(
    "scores-written-out",
    symptom="memory that grows with the fourth power of the picture's side",
    prevention="use a fused attention kernel (attention='auto')",
)
def scores_written_out(case: Case) -> Iterator[Seen]:
    """The attention kernel keeps whole score matrices, and they are a large part of the peak."""
    plan = _plan(case, None)
    if not plan.work.holds_scores:
        return
    denoise = next((stage for stage in plan.stages if stage.name == "denoise"), None)
    parts = {} if denoise is None else denoise.by_component
    scores = parts.get("self_attention", 0) + parts.get("cross_attention", 0)
    if denoise is not None and scores > SCORES * max(1, denoise.activation_bytes):
        yield Seen(
            evidence=f"{size_in_words(scores)} of {size_in_words(denoise.activation_bytes)} activations are attention",
            cause="the kernel writes scores out, queries times keys for each head",
            fix="load it with attention='auto' or 'memory'",
            module=denoise.hotspot.module,
            changes=(Change(where="load", name="attention", value="auto"),),
        )


RULES = (does_not_fit, scores_written_out)
