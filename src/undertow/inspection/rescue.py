"""One more evaluation of a row whose numbers are not finite: it finds the first module, and computes that in float32.

Every module is watched. The first tensor that is not finite is either what a module returns, or what it receives from
the arithmetic of the module around it (attention between its projections, a residual sum), which is at fault then. That
module is computed once more from its own inputs, in float32, by a copy of its weights in that type. What fits into the
network's type goes on in it; what does not goes on in float32, in which the layers that receive it compute as well,
until it fits again: the next normalization at the latest. Where that does not help, as at a sum between two modules of
a stage that leaves the range, the row is evaluated with every layer in float32. Nothing is kept from one row to the
next, so a row's numbers depend on the row alone, as its log of outcomes relies on.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from undertow.adapters.manager import AdapterManager
from undertow.engine.fault import WHOLE, Cause, Fault, Mitigation, Rescued
from undertow.engine.probing import ForwardProbe, named_networks
from undertow.engine.rows import Outcome, Row
from undertow.errors import InvalidInput
from undertow.inspection.numerics import bad_input, cause_of, changed, is_finite_record, titles_of
from undertow.inspection.records import is_finite
from undertow.inspection.sites import joined
from undertow.inspection.without_adapters import is_finite_without
from undertow.nn.adaptable import Conv2d, Linear
from undertow.nn.attention import AttentionProjections
from undertow.unet.blocks import Stage
from undertow.unet.encoder import Encoder
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
        outcome = _evaluated(again, replay)
        fault = replay.fault
        if fault is None:
            return None
        if outcome is None and how == "upcast" and fault.cause in ("overflow", "scores", "adapter"):
            replay = Replay(row=row, how=how, hidden=hidden, adapters=self.adapters, everything=True)
            outcome = _evaluated(again, replay)
        if how == "fail" or outcome is None:
            return Rescued(fault=self._blamed(row, fault, again))
        return Rescued(fault=fault, outcome=outcome, upcast=replay.upcast, clamped=replay.clamped)

    def _blamed(self, row: Row, fault: Fault, again: Callable[[ForwardProbe], Outcome]) -> Fault:
        """The fault, with the row's adapters as its cause where its numbers are finite without them: the module that
        could not hold them need not be one that they act in."""
        titles = titles_of(row)
        if not titles or fault.cause not in ("arithmetic", "overflow", "scores"):
            return fault
        if not is_finite_without(again, pristine_of(row, self.adapters)):
            return fault
        return replace(fault, cause="adapter", detail=f"{fault.detail}; without {titles} the prediction is finite")


def _evaluated(again: Callable[[ForwardProbe], Outcome], replay: "Replay") -> Outcome | None:
    """What comes of an evaluation; `None` where numbers are not finite all the same."""
    try:
        outcome = again(replay)
    except InvalidInput:  # the network refuses what it is given
        return None
    return None if replay.helpless or not bool(outcome.prediction.isfinite().all()) else outcome


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
    finite: bool = True
    """What it received before probes changed it, and then what it returned before they did."""


class Replay:
    """The probe of one evaluation of one row. everything: computes every layer in float32, to the end. fault: the
    first; helpless: whether something could not be mended."""

    def __init__(
        self, *, row: Row, how: Mitigation, hidden: bool, adapters: AdapterManager | None, everything: bool = False
    ):
        self.fault: Fault | None = None
        self.helpless = False
        self.upcast: Counter[str] = Counter()
        self.clamped: Counter[str] = Counter()
        self._row, self._how, self._hidden, self._adapters = row, how, hidden, adapters
        self._everything = everything
        self._calls: list[_Call] = []
        self._computing = False

    def wants(self, rows: Sequence[Row]) -> bool:
        return True

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        handles: list[torch.utils.hooks.RemovableHandle] = []
        for prefix, network, _ in named_networks(rows):
            for own, module in network.named_modules():
                name = joined(prefix, own)
                # The probes of others are attached already: what they change lies between the first and the second.
                handles.append(module.register_forward_pre_hook(self._entered(name), with_kwargs=True, prepend=True))
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                # Before layers that are streamed leave memory again.
                handles.append(module.register_forward_hook(self._after, with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(self._left))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entered(self, name: str) -> Callable[..., None]:
        def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._computing:
                finite = self._is_done or is_finite_record((args, kwargs))
                self._calls.append(_Call(name=name, module=module, args=args, kwargs=kwargs, finite=finite))

        return entered

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._computing:
            return None
        call = self._calls[-1]
        around = self._calls[:-1]
        call.args, call.kwargs = args, kwargs
        if not self._is_done and not any(one.broken for one in around) and not is_finite_record((args, kwargs)):
            self._received(call)
        if _takes_whole(module) and (self._everything or torch.float32 in _types(args)):
            call.wide = self._row.unet.dtype != torch.float32
        return changed((args, kwargs), self._row.unet.dtype) if call.wide else None

    @property
    def _is_done(self) -> bool:
        """Whether nothing more is asked than what was found."""
        return self._how == "fail" and self.fault is not None

    def _received(self, call: _Call) -> None:
        """Numbers that are not finite come in: from a probe, from outside, or from the module around this one."""
        if call.finite:
            self._answered(call)
        elif len(self._calls) > 1:
            self._calls[-2].broken = True
        elif self.fault is None:
            module, cause, detail = bad_input(call.module, call.args, call.kwargs)
            self.fault = self._found(module, call, cause, detail)

    def _answered(self, call: _Call) -> None:
        """A probe put numbers that are not finite in the place of others: nothing computes them."""
        self.helpless = True
        if self.fault is None:
            self.fault = self._found(call.name, call, "probe", "it is not finite, and what it takes the place of is")

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._computing:
            return None
        call, around = self._calls[-1], self._calls[:-1]
        bad = not is_finite_record(output)
        call.finite = not bad
        if self._is_done or any(one.broken or one.wide for one in around) or not (bad or call.broken or call.wide):
            return None
        mended = self._mended(call, around[-1] if around else None, output, bad=bad)
        call.finite = mended is not None or not bad
        return mended

    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._computing:
            return
        call = self._calls.pop()
        if call.finite and not self._is_done and not is_finite_record(output):
            self._answered(call)

    def _mended(self, call: _Call, around: _Call | None, output: Any, *, bad: bool) -> Any:
        """What takes the place of a module's output; `None` where it stays."""
        if isinstance(call.module, (Stage, Encoder)) or not isinstance(output, Tensor):
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
        if self._everything:
            self.upcast[WHOLE] = 1
            return wide
        if around is not None and isinstance(around.module, AttentionProjections) and _last(call.name) in PROJECTIONS:
            around.broken = True  # with it, queries, keys and values are of one type
            return None
        self.upcast[call.name] += 1
        return fitted(wide, self._row.unet.dtype)

    def _name(self, call: _Call, wide: Tensor | None) -> None:
        if self.fault is None:
            cause, detail = cause_of(self._row, call.module, call.name, call.args, call.kwargs, wide, self._plain(call))
            self.fault = self._found(call.name, call, cause, detail)

    def _found(self, module: str, call: _Call, cause: Cause, detail: str) -> Fault:
        return Fault(
            module=module or "U-Net",
            kind=type(call.module).__name__,
            dtype=str(self._row.unet.dtype).removeprefix("torch."),
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
            if self._row.adapters is None or self._adapters is None or isinstance(call.module, (Stage, Encoder)):
                return None
            pristine = pristine_of(self._row, self._adapters)
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


def pristine_of(row: Row, adapters: AdapterManager | None) -> Mapping[str, Tensor]:
    """By name, the weights of the U-Net that the row's LoRA are merged into, as they were before."""
    from undertow.adapters.lora.kind import LoraKind  # noqa: PLC0415  only where something is wrong

    return adapters.kind(LoraKind).merged.pristine if row.merged and adapters is not None else {}


def _takes_whole(module: nn.Module) -> bool:
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
