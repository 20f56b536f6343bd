"""The kernel that networks are built with: it chooses for each call, and replaces what fails (R139)."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

import torch

from undertow.attention.catalogue import KERNELS
from undertow.attention.choose import Choice, choose
from undertow.attention.kernel import AttentionKernel, KernelEntry, Requirements
from undertow.attention.measurement import Measurements, stored_measurements
from undertow.attention.policy import FASTEST, SCORES_OUT, AttentionPolicy, as_policy
from undertow.errors import InvalidInput, MissingDependency
from undertow.processor import has_amx, has_bfloat16
from undertow.shapes import AttentionMask, Keys, Queries
from undertow.shortage import is_out_of_memory

logger = logging.getLogger(__name__)

SUBSTITUTES = ("sdpa", "chunked", "math")
"""What takes the place of a kernel that fails, in this order."""

PLAIN = ("math", "sliced", "chunked")
"""Kernels of ordinary matrix products, which fail where everything does: named, they run without a substitute."""

Kind = tuple[str, torch.dtype, int, bool]
"""Device, type, width of heads, masked or not: what makes a kernel fail, when it does."""


class ChosenAttention:
    """Applies to each call the kernel that `choose` names, or the one that was asked for by `name`.

    A kernel that raises anything but running out of memory is replaced for calls of this kind (device, type, width of
    heads, masked or not) by the next that can serve them; `notes` says so. In a compiled graph nothing can be tried:
    there an error stops the compilation.
    """

    def __init__(
        self,
        *,
        float32_logits: bool = False,
        policy: AttentionPolicy = FASTEST,
        measured: Measurements | None = None,
        name: str | None = None,
    ):
        self.float32_logits = float32_logits
        self.policy = policy
        self.measured = measured
        self.name = name
        self._failed: dict[Kind, dict[str, str]] = {}
        self._names: dict[Requirements, str] = {}
        self._notes: dict[str, None] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "ChosenAttention":
        """Copies of a network share its kernel, as they would share a function."""
        return self

    def __call__(self, query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
        requirements = Requirements(
            device=query.device.type,
            dtype=query.dtype,
            queries=query.shape[2],
            keys=key.shape[2],
            rows=query.shape[0],
            heads=query.shape[1],
            head_dim=query.shape[3],
            masked=mask is not None,
            float32_logits=self.float32_logits,
            imitated=query.dtype == torch.bfloat16 and not has_bfloat16(),
            amx=query.dtype == torch.bfloat16 and has_amx(),
            gradient=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)),
        )
        if torch.compiler.is_compiling():
            return KERNELS[self._first(requirements, {}).name].kernel(query, key, value, mask)
        kind, failed = _kind(requirements), dict[str, Exception]()
        while True:
            name = self._next(requirements, failed)
            try:
                output = KERNELS[name].kernel(query, key, value, mask)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                failed[name] = error
                continue
            if failed:
                self._remember(kind, failed, name)
                failed.clear()  # the errors hold this frame, and with it the tensors
            return output

    def choice(self, requirements: Requirements) -> Choice:
        """The kernel for a call, and why."""
        requirements = replace(requirements, float32_logits=self.float32_logits)
        return self._first(requirements, self._failed.get(_kind(requirements), {}))

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that have run."""
        return tuple(dict.fromkeys(self._names.values()))

    @property
    def notes(self) -> tuple[str, ...]:
        """Which kernels failed here and what took their place; empty while none did."""
        return tuple(self._notes)

    def _next(self, requirements: Requirements, failed: Mapping[str, Exception]) -> str:
        """The kernel to try, after those that have just failed. Errors: the first failure when none is left."""
        if not failed:
            found = self._names.get(requirements)
            if found is None:
                failed_before = self._failed.get(_kind(requirements), {})
                choice = self._first(requirements, failed_before)
                found = self._names[requirements] = choice.name
                if self.name not in (None, found, *failed_before):
                    self._note(f"attention kernel {found} runs {choice.reason}")
            return found
        try:
            before = self._failed.get(_kind(requirements), {})
            return self._first(requirements, {**before, **{name: str(error) for name, error in failed.items()}}).name
        except InvalidInput:
            raise next(iter(failed.values())) from None

    def _first(self, requirements: Requirements, failed: Mapping[str, str]) -> Choice:
        """The kernel that comes first. failed: those that must not be taken, and why."""
        if self.name is None:
            return choose(requirements, self.policy, self.measured, failed)
        if self.name not in failed and KERNELS[self.name].lacks(requirements) is None:
            return Choice(self.name, "asked for by name")
        why = failed.get(self.name) or KERNELS[self.name].lacks(requirements) or ""
        for name in SUBSTITUTES:
            if name not in failed and name != self.name and KERNELS[name].lacks(requirements) is None:
                return Choice(name, f"in place of {self.name}: {why}")
        raise InvalidInput("attention", repr(self.name), "a kernel that runs here", why)

    def _remember(self, kind: Kind, failed: Mapping[str, Exception], name: str) -> None:
        """Calls of this kind go to the substitute at once from now on, which is said a single time."""
        self._failed.setdefault(kind, {}).update({other: _first_line(error) for other, error in failed.items()})
        self._names.clear()
        for other, error in failed.items():
            self._note(f"attention kernel {other} failed ({_first_line(error)}); {name} takes its place")

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes[line] = None
            logger.warning("%s", line)


auto_attention = ChosenAttention()
"""Chooses by rules alone, as networks do that are built by hand."""

auto_attention_float32 = ChosenAttention(float32_logits=True)
"""The same, restricted to kernels that keep scores in float32 (SD2's `upcast_attention`)."""


def kernel_named(
    name: str | AttentionPolicy,
    *,
    float32_logits: bool = False,
    device: torch.device | str | None = None,
    measured: Measurements | None = None,
) -> AttentionKernel:
    """The kernel called `name`: "auto", a goal ("speed", "memory", "balanced"), a key of `KERNELS`, or a policy.

    device: on which it will run, if that is known. measured: what decides for "auto" and the goals; without it rules
    do. Errors: `InvalidInput` for an unknown name, and for a kernel that cannot run on the device or cannot keep scores
    in float32 when the model needs that; `MissingDependency` for a package that is not installed.
    """
    policy = as_policy(name)
    if policy is not None:
        if policy == FASTEST and measured is None:
            return auto_attention_float32 if float32_logits else auto_attention
        return ChosenAttention(float32_logits=float32_logits, policy=policy, measured=measured)
    name = str(name)
    entry = KERNELS[name]
    if float32_logits and not entry.float32_logits:
        able = [other.name for other in KERNELS.values() if other.float32_logits and _general(other)]
        raise InvalidInput(
            "attention",
            repr(name),
            "a kernel that keeps scores in float32, as this model needs",
            f"use {' or '.join(able)}",
        )
    kind = None if device is None else torch.device(device).type
    if kind is not None and entry.devices is not None and kind not in entry.devices:
        able = [other.name for other in KERNELS.values() if other.exact and kind in (other.devices or (kind,))]
        raise InvalidInput("attention", repr(name), f"a kernel that runs on {kind}", f"use {' or '.join(able)}")
    if entry.package is not None and find_spec(entry.package) is None:
        raise MissingDependency(entry.package, entry.package)
    if name in PLAIN:
        return entry.kernel
    return ChosenAttention(float32_logits=float32_logits, name=name)


def stored_kernel(
    name: str | AttentionPolicy, *, float32_logits: bool, device: torch.device | str | None
) -> AttentionKernel:
    """`kernel_named`, deciding by what was measured on this machine and stored. Errors: as there."""
    place = "cpu" if device is None else device
    measured = None if as_policy(name) is None else stored_measurements(place)
    return kernel_named(name, float32_logits=float32_logits, device=place, measured=measured)


def kernel_notes(kernel: AttentionKernel) -> tuple[str, ...]:
    """What a kernel has to report: those that failed and what took their place."""
    return kernel.notes if isinstance(kernel, ChosenAttention) else ()


def described_kernel(kernel: AttentionKernel) -> str:
    """What decides which kernel runs: a name, or a policy and what it was measured by."""
    if not isinstance(kernel, ChosenAttention):
        return getattr(kernel, "__name__", type(kernel).__name__)
    if kernel.name is not None:
        return kernel.name
    calls = () if kernel.measured is None else kernel.measured.calls
    return f"{kernel.policy}, {len(calls)} calls measured" + (f" on {max(one.date for one in calls)}" if calls else "")


def holds_scores(kernel: AttentionKernel) -> bool:
    """Whether a kernel has written scores out, or would: what computing in parts saves memory for."""
    names = kernel.names if isinstance(kernel, ChosenAttention) else (name_of(kernel),)
    return any(name in SCORES_OUT for name in names)


def name_of(kernel: AttentionKernel) -> str | None:
    """The name of a plain kernel of the catalogue; `None` for one of somebody's own."""
    return next((name for name, entry in KERNELS.items() if entry.kernel is kernel), None)


def _general(entry: KernelEntry) -> bool:
    """Whether a kernel can be recommended to anybody."""
    return entry.devices is None and entry.exact


def _kind(requirements: Requirements) -> Kind:
    return (requirements.device, requirements.dtype, requirements.head_dim, requirements.masked)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
