"""One more evaluation of a row whose numbers are not finite: it finds the first module, and computes that in float32.

Every module is watched. The first tensor that is not finite is either what a module returns, or what it receives from
the arithmetic of the module around it (attention between its projections, a residual sum), which is at fault then. That
module is computed once more from its own inputs, in float32, by a copy of its weights in that type. What fits into the
network's type goes on in it; what does not goes on in float32, in which the layers that receive it compute as well,
until it fits again: the next normalization at the latest. Nothing is kept from one row to the next, so a row's numbers
depend on the row alone, as its log of outcomes relies on.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from undertow.adapters.manager import AdapterManager
from undertow.engine.fault import Fault, Mitigation, Rescued
from undertow.engine.probing import ForwardProbe
from undertow.engine.rows import Outcome, Row
from undertow.errors import InvalidInput
from undertow.inspection.numerics import bad_input, cause_of, changed, is_finite_record
from undertow.inspection.records import is_finite
from undertow.nn.adaptable import Conv2d, Linear
from undertow.nn.attention import AttentionProjections
from undertow.unet.blocks import Stage
from undertow.unet.unet import UNet

LIMIT = 65_000.0
"""What "clamp" cuts at: just inside float16's range of 65,504 (source document 004)."""

PROJECTIONS = ("to_q", "to_k", "to_v")
"""Layers of attention whose results only make sense together: the whole attention is computed in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescuer:
    """For `Engine.rescue`. adapters: of the model, to tell an adapter's numbers from the model's own."""

    adapters: AdapterManager | None = None

    def __call__(
        self, row: Row, how: Mitigation, hidden: bool, again: Callable[[ForwardProbe], Outcome]
    ) -> Rescued | None:
        replay = Replay(row=row, how=how, hidden=hidden, adapters=self.adapters)
        try:
            outcome = again(replay)
        except InvalidInput:  # the network refuses what it is given
            outcome = None
        if replay.fault is None:
            return None
        sound = outcome is not None and bool(outcome.prediction.isfinite().all()) and not replay.helpless
        if how == "fail" or outcome is None or not sound:
            return Rescued(fault=replay.fault)
        return Rescued(fault=replay.fault, outcome=outcome, upcast=replay.upcast, clamped=replay.clamped)


@dataclass(eq=False)
class _Call:
    """A module that is computing. broken: something inside it is not finite and is mended by computing all of it
    again."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    wide: bool = False
    broken: bool = False


class Replay:
    """The probe of one evaluation of one row. fault: the first; helpless: whether something could not be mended."""

    def __init__(self, *, row: Row, how: Mitigation, hidden: bool, adapters: AdapterManager | None):
        self.fault: Fault | None = None
        self.helpless = False
        self.upcast: Counter[str] = Counter()
        self.clamped: Counter[str] = Counter()
        self._row, self._how, self._hidden, self._adapters = row, how, hidden, adapters
        self._calls: list[_Call] = []
        self._computing = False

    def wants(self, rows: Sequence[Row]) -> bool:
        return True

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        handles: list[torch.utils.hooks.RemovableHandle] = []
        for name, module in unet.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            # Before layers that are streamed leave memory again.
            handles.append(module.register_forward_hook(self._after, with_kwargs=True, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._computing:
                return None
            if self.fault is None and not is_finite_record((args, kwargs)):
                self._received(name, args, kwargs)
            call = _Call(name=name, module=module, args=args, kwargs=kwargs)
            self._calls.append(call)
            if self._takes_whole(module) and torch.float32 in _types(args):
                call.wide = self._row.unet.dtype != torch.float32
            return changed((args, kwargs), self._row.unet.dtype) if call.wide else None

        return before

    def _received(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first numbers that are not finite come in: from outside, or from the module around this one."""
        if self._calls:
            self._calls[-1].broken = True
        else:
            module, cause, detail = bad_input(self._row, args, kwargs)
            self.fault = self._found(module, name, cause, detail)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._computing:
            return None
        call = self._calls.pop()
        bad = not is_finite_record(output)
        around = self._calls[-1] if self._calls else None
        known = self._how == "fail" and self.fault is not None
        if known or any(one.broken or one.wide for one in self._calls) or not (bad or call.broken or call.wide):
            return None
        return self._mended(call, around, output, bad=bad)

    def _mended(self, call: _Call, around: _Call | None, output: Any, *, bad: bool) -> Any:
        """What takes the place of a module's output; `None` where it stays."""
        if isinstance(call.module, (Stage, UNet)) or not isinstance(output, Tensor):
            self._name(call, None)  # they take their skip connections off a list, and cannot be called again
            self.helpless = self.helpless or bad or call.broken
            return None
        wide = self._in_float32(call)
        if bad or call.broken:
            self._name(call, wide)
            if self._how == "clamp" and not call.broken and not call.wide:
                return self._cut(call, output)
            if self._how == "fail":
                return None
        if not is_finite(wide):
            self.helpless = True
            return None
        if around is not None and isinstance(around.module, AttentionProjections) and _last(call.name) in PROJECTIONS:
            around.broken = True  # with it, queries, keys and values are of one type
            return None
        self.upcast[call.name] += 1
        return fitted(wide, self._row.unet.dtype)

    def _name(self, call: _Call, wide: Tensor | None) -> None:
        if self.fault is None:
            cause, detail = cause_of(self._row, call.module, call.name, call.args, call.kwargs, wide, self._plain(call))
            self.fault = self._found(call.name, call.name, cause, detail)

    def _found(self, module: str, name: str, cause: Any, detail: str) -> Fault:
        unet = self._row.unet
        kind, dtype = type(unet.get_submodule(name)).__name__, str(unet.dtype).removeprefix("torch.")
        return Fault(
            module=module or "U-Net",
            kind=kind,
            dtype=dtype,
            cause=cause,
            origin=self._row.origin,
            hidden=self._hidden,
            detail=detail,
        )

    def _cut(self, call: _Call, output: Tensor) -> Tensor | None:
        if bool(output.isnan().any()):
            self.helpless = True
            return None
        self.clamped[call.name] += int((output[:1].abs() > LIMIT).sum())
        return output.clamp(-LIMIT, LIMIT)

    def _in_float32(self, call: _Call) -> Tensor:
        """The module's output from its own inputs, all in float32. Its weights themselves are left alone."""
        return self._computed(call, {})

    def _plain(self, call: _Call) -> Callable[[], Tensor | None]:
        """The same without adapters; `None` where none act in the module."""

        def plain() -> Tensor | None:
            from undertow.adapters.lora.kind import LoraKind  # noqa: PLC0415  only where something is wrong

            if self._row.adapters is None or self._adapters is None or isinstance(call.module, (Stage, UNet)):
                return None
            pristine = self._adapters.kind(LoraKind).merged.pristine if self._row.merged else {}
            start = f"{call.name}."
            own = {name.removeprefix(start): one for name, one in pristine.items() if name.startswith(start)}
            return self._computed(call, own, without_slots=True)

        return plain

    def _computed(self, call: _Call, weights: dict[str, Tensor], *, without_slots: bool = False) -> Tensor:
        module = call.module
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers()), **weights}
        device = self._row.latents.device
        wide = {name: one.to(device, torch.float32) for name, one in tensors.items() if one.is_floating_point()}
        args, kwargs = changed((call.args, call.kwargs), torch.float32, without_slots=without_slots)
        self._computing = True
        try:
            return functional_call(module, wide, args, kwargs)
        finally:
            self._computing = False

    def _takes_whole(self, module: nn.Module) -> bool:
        """Modules that compute in one type: layers with weights of their own, and attention."""
        return isinstance(module, (AttentionProjections, Linear, Conv2d)) or not list(module.children())


def fitted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype` where every number fits."""
    low, high = (float(one) for one in tensor.aminmax())
    fits = math.isfinite(low) and math.isfinite(high) and max(-low, high) <= torch.finfo(dtype).max
    return tensor.to(dtype) if fits else tensor


def _types(args: tuple[Any, ...]) -> set[torch.dtype]:
    return {one.dtype for one in args if isinstance(one, Tensor)}


def _last(name: str) -> str:
    return name.rpartition(".")[2]
