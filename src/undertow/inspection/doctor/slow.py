"""Slow pictures: kernels, types, threads, compilation, swap, and processors that others use."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from undertow.attention.catalogue import KERNELS
from undertow.attention.chosen import ChosenAttention, kernel_notes, name_of
from undertow.attention.kernel import AttentionKernel
from undertow.attention.measurement import Call
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Change, Seen, rule
from undertow.inspection.doctor.host import Host
from undertow.processor import IMITATED, computes
from undertow.shortage import size_in_words
from undertow.unet.attention_calls import attention_calls

SLOWER = 1.3
"""Factor of a kernel's time to the fused one's from which on it is worth a word."""

TRIES = 3
LONG_S = 600.0
"""Time in the network above which compiling, which takes a minute or two, gains more than it costs."""

SWAPPED = 64 * 2**20
STOLEN = 0.1
"""Share of processor time."""

THROTTLED = 0.1
"""Share of the time in which a container may not run."""

PROBED_CELLS = 32
"""Side of the feature map at which kernels are timed, at most."""

slow_rule = partial(rule, family="slow")


@slow_rule(
    "type-imitated",
    symptom="every step takes several times as long as in float32",
    prevention="leave --precision away: types that the device imitates are not chosen",
)
def type_imitated(case: Case) -> Iterator[Seen]:
    """A network in a type that the device has no instructions for."""
    parts = {"unet": case.model.unet, "vae": case.model.vae}
    for part, network in parts.items():
        if network is not None and not computes(network.dtype, network.device):
            name = "dtype" if part == "unet" else "vae_dtype"
            yield Seen(
                evidence=f"{network.dtype} on {network.device}, which computes float32 by itself",
                cause=IMITATED.get(network.dtype, "the device imitates this type"),
                fix=f"load it with {name}=torch.float32 ({'--precision' if part == 'unet' else '--vae-precision'} f32)",
                module=part,
                changes=(Change(where="load", name=name, value="float32"),),
            )


@slow_rule(
    "kernel-replaced",
    symptom="a line in the log that an attention kernel failed",
    prevention="undertow bench attention tries every kernel on this machine",
)
def kernel_replaced(case: Case) -> Iterator[Seen]:
    """An attention kernel failed here, and another took its place."""
    for line in kernel_notes(case.unet.kernel):
        yield Seen(
            evidence=line,
            cause="the kernel does not run here, or not with these shapes",
            fix="load it with attention='auto'",
            module="attention",
            changes=(Change(where="load", name="attention", value="auto"),),
        )


@slow_rule(
    "kernel-slow",
    symptom="large pictures take much longer than small ones",
    prevention="leave --attention away, or measure: undertow bench attention",
)
def kernel_slow(case: Case) -> Iterator[Seen]:
    """The kernel that was asked for by name is slower here than PyTorch's fused one, at the largest self-attention."""
    kernel = case.unet.kernel
    name = kernel.name if isinstance(kernel, ChosenAttention) else name_of(kernel)
    side = min(case.unet.config.sample_size, PROBED_CELLS)
    call = next(iter(attention_calls(case.unet.config, side, side)), None)
    if name in (None, "sdpa") or call is None:
        return
    own, fused = (_seconds(one, call, case.unet.device, case.unet.dtype) for one in (kernel, KERNELS["sdpa"].kernel))
    if own > SLOWER * fused:
        yield Seen(
            evidence=f"{name} takes {1e3 * own:.2f} ms for {call.queries} queries, sdpa {1e3 * fused:.2f} ms",
            cause=f"the kernel {name} was asked for by name",
            fix="load it with attention='auto'",
            module="attention",
            changes=(Change(where="load", name="attention", value="auto"),),
        )


def _seconds(kernel: AttentionKernel, call: Call, device: torch.device, dtype: torch.dtype) -> float:
    """The least of several, as other work only makes it longer."""
    shape = (call.rows, call.heads, call.queries, call.head_dim)
    query, key, value = torch.randn(3, *shape, device=device, dtype=dtype)
    least = float("inf")
    for _ in range(1 + TRIES):
        start = time.perf_counter()
        with torch.no_grad():
            kernel(query, key, value, None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - start)
    return least


@slow_rule(
    "threads",
    symptom="some processors have nothing to do, or all wait for each other",
    prevention="leave OMP_NUM_THREADS and torch.set_num_threads alone, or set them to the number of cores",
)
def threads(case: Case) -> Iterator[Seen]:
    """PyTorch runs in fewer threads than half of the processors, or in more than there are."""
    if case.unet.device.type == "cpu":
        yield from _too_few_or_many(case.host)


def _too_few_or_many(host: Host) -> Iterator[Seen]:
    if host.cores / 2 <= host.threads <= host.cores:
        return
    yield Seen(
        evidence=f"{host.threads} threads on {host.cores} processors that this process may use",
        cause="OMP_NUM_THREADS, torch.set_num_threads or a container's limit says so",
        fix=f"set OMP_NUM_THREADS={host.cores}",
    )


@slow_rule(
    "not-compiled",
    symptom="a long run of many steps",
    prevention="load models that draw for hours with backend='compile'",
)
def not_compiled(case: Case) -> Iterator[Seen]:
    """A run that is long enough for compilation to pay."""
    request = case.request
    if not case.runner.capabilities.observable:
        return
    branches = 1 if request.guidance_scale == 1 else 2
    side = min(case.unet.config.sample_size, 64)
    cells = case.size[0] * case.size[1] / (case.factor * side) ** 2
    whole = case.activations.seconds * cells * branches * request.drawn_steps * request.count
    if whole > LONG_S:
        yield Seen(
            evidence=f"{request.count * request.drawn_steps * branches} evaluations of about "
            f"{case.activations.seconds * cells:.2f} s: {whole / 60:.0f} minutes; compiling takes one or two",
            cause="operations run one by one",
            fix="load it with backend='compile'",
            severity="note",
            changes=(Change(where="load", name="backend", value="compile"),),
        )


@slow_rule(
    "swapped",
    symptom="steps of very unequal length, and a busy disk",
    prevention="undertow plan says before a run what it takes",
)
def swapped(case: Case) -> Iterator[Seen]:
    """A part of this process is in swap."""
    yield from _in_swap(case.host)


def _in_swap(host: Host) -> Iterator[Seen]:
    found = host.swapped_bytes()
    if found > SWAPPED:
        yield Seen(
            evidence=f"{size_in_words(found)} of this process are in swap (VmSwap)",
            cause="the machine has less memory than its processes use",
            fix="draw with --budget or --low-vram, or end other processes",
        )


@slow_rule(
    "processor-taken-away",
    symptom="the same step takes twice as long at times",
    prevention="look at steal in top, and at the container's limit, when times are compared",
)
def processor_taken_away(case: Case) -> Iterator[Seen]:
    """While the network ran, the hypervisor or the container's limit took processor time away."""
    before, after = case.activations.times
    stolen = after.stolen_since(before)
    held_s = (after.throttled_us - before.throttled_us) / 1e6
    seconds = max(case.activations.seconds, 1e-6)
    if stolen > STOLEN:
        yield Seen(
            evidence=f"{stolen:.0%} of the processors' time was stolen during one forward of {seconds:.2f} s",
            cause="the virtual machine shares its processors with others",
            fix="run it on a machine of one's own, or measure again later",
        )
    if held_s > THROTTLED * seconds:
        yield Seen(
            evidence=f"held back for {held_s:.2f} s during one forward of {seconds:.2f} s (throttled_usec)",
            cause="the container's limit of processor time is used up",
            fix="raise its cpu limit, or set OMP_NUM_THREADS to that limit",
        )


RULES = (
    type_imitated,
    kernel_replaced,
    kernel_slow,
    threads,
    not_compiled,
    swapped,
    processor_taken_away,
)

WITHOUT_MODEL: Mapping[str, Callable[[Host], Iterator[Seen]]] = {
    threads.name: _too_few_or_many,
    swapped.name: _in_swap,
}
"""What can be asked of the machine alone, by the rule that it belongs to."""
