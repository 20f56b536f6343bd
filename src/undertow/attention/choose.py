"""Chooses the attention kernel for each call: a pure function of shapes, and of what was measured on this machine, that
returns the kernel's name and the reason."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from undertow.attention.catalogue import KERNELS
from undertow.attention.kernel import KernelEntry, Requirements
from undertow.attention.measurement import MeasuredCall, Measurements, Timing
from undertow.attention.policy import FASTEST, AttentionPolicy
from undertow.errors import InvalidInput
from undertow.shortage import size_in_words

LITTLE_LONGER = 1.1
"""What "balanced" gives for less memory, times the seconds of the fastest kernel."""

EQUAL = 1.05
"""Factor within which two timings are the same."""

CHUNKED_KEYS = 1024
"""In bfloat16, on CPUs that have it without AMX, the chunked kernel beats the fused one; with AMX it takes twice as
long, and where the type is imitated twenty times (benchmarks/attention.py). Beyond this many keys it is not taken where
a backward pass follows, for which it keeps all scores."""

GRADIENT_KEYS = 256
"""Up to this many keys the chunked kernel is taken with AMX too where a backward pass follows: that of the fused kernel
does not multiply in tiles, and both passes together take a third of its time for many rows of 64 tokens, and as long as
its own for 1,024 (benchmarks/attention.py --gradient)."""


class Choice(NamedTuple):
    """A kernel's name, and the reason for choosing it."""

    name: str
    reason: str


def choose(
    requirements: Requirements,
    policy: AttentionPolicy = FASTEST,
    measured: Measurements | None = None,
    without: Collection[str] = (),
) -> Choice:
    """The kernel that serves the policy best for this call, of those that meet its requirements.

    measured: of this machine; calls that nothing measured is near to are decided by rules. without: names of kernels
    that failed here. Errors: `InvalidInput` when no kernel is left.
    """
    if policy == FASTEST and measured is None and not without:
        return _usual(requirements)
    able = {
        name: entry
        for name, entry in KERNELS.items()
        if entry.exact and name not in without and entry.lacks(requirements) is None
    }
    if not able:
        raise InvalidInput("attention", f"without {', '.join(without)}", "a kernel that can serve the call")
    near = None if measured is None else measured.near(requirements)
    timings = {} if near is None else {name: timing for name, timing in near.timings.items() if name in able}
    needs = {name: _needs(entry, requirements, timings.get(name), near) for name, entry in able.items()}
    fitting = {name for name in able if policy.budget_bytes is None or needs[name] <= policy.budget_bytes}
    if not fitting:
        least = _least(needs)
        return Choice(least, f"no kernel stays within {_budget(policy)}; this one needs {size_in_words(needs[least])}")
    known = {name: timing for name, timing in timings.items() if name in fitting}
    if near is not None and known:
        return _by_measurement(known, needs, policy, near, usual=_usual(requirements).name)
    return _by_rule(requirements, policy, fitting, needs)


def _needs(entry: KernelEntry, requirements: Requirements, timing: Timing | None, near: MeasuredCall | None) -> int:
    """Scratch bytes: as measured for this very call, else the kernel's own bound."""
    exact = near is not None and (near.call.rows, near.call.heads, near.call.queries, near.call.keys) == (
        requirements.rows,
        requirements.heads,
        requirements.queries,
        requirements.keys,
    )
    if timing is not None and exact and not requirements.masked:
        return timing.scratch_bytes
    return entry.scratch_bytes(requirements)


def _by_measurement(
    timings: Mapping[str, Timing], needs: Mapping[str, int], policy: AttentionPolicy, near: MeasuredCall, usual: str
) -> Choice:
    least = min(timing.seconds for timing in timings.values())
    equal = [name for name in KERNELS if name in timings and timings[name].seconds <= least * EQUAL]
    fastest = usual if usual in equal else equal[0]  # so that measuring does not change bits for nothing
    limit = least * LITTLE_LONGER
    match policy.goal:
        case "speed":
            name, why = fastest, "the fastest"
        case "memory":
            name = _least({name: (needs[name], timings[name].seconds) for name in timings})
            why = f"the least memory, {size_in_words(needs[name])}"
        case "balanced":
            quick = [name for name in timings if timings[name].seconds <= limit]
            name = _least({name: (needs[name], timings[name].seconds) for name in quick})
            why = (
                "the fastest" if name == fastest else f"{size_in_words(needs[name])}, and little slower than {fastest}"
            )
    taken = f"{1e3 * timings[name].seconds:.3g} ms at {near.call}, measured {near.date}"
    return Choice(name, f"{why}: {taken}")


def _by_rule(
    requirements: Requirements, policy: AttentionPolicy, fitting: Collection[str], needs: Mapping[str, int]
) -> Choice:
    """Without a measurement: what is fastest by experience, where it fits; else what needs least memory."""
    usual = _usual(requirements)
    if policy.goal != "memory" and usual.name in fitting:
        return usual
    # The catalogue's order decides between equals: PyTorch's own choice comes before the back ends by name.
    least = _least({name: needs[name] for name in KERNELS if name in fitting})
    need = f"at most {size_in_words(needs[least])} beside inputs and output"
    if policy.goal == "memory":
        return Choice(least, f"the least memory: {need}")
    why = "failed here" if policy.budget_bytes is None else f"would not stay within {_budget(policy)}"
    return Choice(least, f"{usual.name} {why}: {need}")


def _usual(requirements: Requirements) -> Choice:
    few = requirements.keys <= CHUNKED_KEYS or not requirements.gradient
    if requirements.device == "cpu" and requirements.dtype == torch.bfloat16 and few:
        if requirements.imitated:
            return Choice("sdpa", "bfloat16 that the CPU imitates: the fused kernel multiplies in float32")
        if requirements.amx and not (requirements.gradient and requirements.keys <= GRADIENT_KEYS):
            return Choice("sdpa", "bfloat16 on a CPU with AMX: the fused kernel multiplies in tiles")
        if not requirements.float32_logits:
            return Choice("chunked", "bfloat16 on a CPU without AMX: matrix products beat the fusion")
        return Choice("sdpa", "the model asks for float32 scores, which the chunked kernel does not keep")
    return Choice("sdpa", "fused: one pass, memory linear in the number of tokens, scores in float32")


def _least(weights: Mapping[str, float | tuple[float, ...]]) -> str:
    """The first name with the least weight: `min` with a key, which `torch.compile` does not trace."""
    least, *others = weights
    for name in others:
        if weights[name] < weights[least]:  # pyright: ignore[reportOperatorIssue]  all are of one kind
            least = name
    return least


def _budget(policy: AttentionPolicy) -> str:
    return f"the budget of {size_in_words(policy.budget_bytes or 0)}"
