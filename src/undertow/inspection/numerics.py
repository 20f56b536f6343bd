"""Why numbers stop being finite: evidence from a module, its inputs, and what it gives in float32."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from undertow.engine.fault import Cause
from undertow.engine.rows import Row
from undertow.inspection.records import is_finite
from undertow.nn.adaptable import Slots, WeightRows
from undertow.nn.attention import AttentionMaps, AttentionProjections

HALF = (torch.float16, torch.bfloat16)

GIVEN: Mapping[str, Cause] = {
    "latents": "input",
    "timesteps": "timestep",
    "conditioning": "conditioning",
    "hint_embedding": "input",
}
"""What is at fault where an argument of a network is not finite."""


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a tree of records, mappings and sequences, with its place."""
    match value:
        case Tensor():
            yield name, value
        case Mapping():
            for key, one in value.items():
                yield from tensors_in(one, f"{name}[{key}]")
        case tuple() | list():
            for index, one in enumerate(value):
                yield from tensors_in(one, f"{name}[{index}]")
        case _ if is_dataclass(value) and not isinstance(value, type):
            for one in fields(value):
                yield from tensors_in(getattr(value, one.name), f"{name}.{one.name}" if name else one.name)
        case _:
            pass


def is_finite_record(value: Any) -> bool:
    """Whether all tensors in a tree are finite. Records are looked at where the network receives them, at its door: its
    layers pass them on as they are."""
    return all(is_finite(tensor) for tensor in _direct(value))


def _direct(value: Any) -> Iterator[Tensor]:
    match value:
        case Tensor():
            yield value
        case Mapping():
            for one in value.values():
                yield from _direct(one)
        case tuple() | list():
            for one in value:
                yield from _direct(one)
        case _ if hasattr(value, "prediction"):
            yield value.prediction
        case _ if type(value).__name__ in ("Conditioning", "Ports"):
            for _, one in tensors_in(value):
                yield one
        case _:
            pass


def changed(value: Any, dtype: torch.dtype, *, without_slots: bool = False) -> Any:
    """The tree with its floating-point tensors of a network's types in `dtype`. without_slots: leaves out what asks for
    LoRA in slots."""
    match value:
        case Tensor():
            return value.to(dtype) if value.dtype in (*HALF, torch.float32) else value
        case WeightRows() if without_slots:
            return None
        case AttentionMaps():
            return value  # filled during the forward
        case Mapping():
            return {key: changed(one, dtype, without_slots=without_slots) for key, one in value.items()}
        case tuple() | list():
            return type(value)(changed(one, dtype, without_slots=without_slots) for one in value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            names = [one.name for one in fields(value) if one.init]
            return replace(value, **{n: changed(getattr(value, n), dtype, without_slots=without_slots) for n in names})
        case _:
            return value


def bad_input(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Cause, str]:
    """What a network, the U-Net or a ControlNet, was given that is not finite: its name, the cause and the evidence."""
    names = [name for name in signature(type(network).forward).parameters if name != "self"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for argument, value in given.items():
        for place, tensor in tensors_in(value):
            if not is_finite(tensor):
                bad = int((~torch.isfinite(tensor[:1])).sum())
                cause = GIVEN.get(argument, "input" if place.startswith("free_u") else "adapter")
                what = place or argument
                named = _adapter_kind(place) if cause == "adapter" else what
                return what, cause, f"{named} has {bad} of {tensor[:1].numel()} numbers that are not finite"
    return "latents", "input", f"what {type(network).__name__} receives is not finite"


def _adapter_kind(place: str) -> str:
    """Whose numbers a port holds, in words."""
    if place.startswith("residuals"):
        return f"what a control network adds ({place})"
    return f"a reference picture ({place})" if place.startswith("image") else f"a LoRA's scale ({place})"


def cause_of(
    row: Row,
    module: nn.Module,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    wide: Tensor | None,
    plain: Callable[[], Tensor | None],
) -> tuple[Cause, str]:
    """Why a module's output is not finite while its input is. wide: what it gives in float32. plain: that without
    adapters."""
    if broken := _broken_slots(module, args, kwargs):
        return "adapter", f"{_titles(row)} put numbers into {broken} that are not finite"
    for weight, tensor in module.named_parameters(recurse=False):
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            return "weight", f"{name}.{weight} has {bad} of {tensor.numel()} numbers that are not finite"
    if wide is None:
        return "overflow", f"what flows together in {name or 'the network'} leaves the range of {_name(row)}"
    if not is_finite(wide):
        return "arithmetic", "its result is not finite in float32 either, from finite inputs and weights"
    largest = float(wide.abs().max())
    reaches = f"in float32 it reaches {largest:.4g}, and {_name(row)} holds {torch.finfo(row.unet.dtype).max:.4g}"
    without = plain()
    if without is not None and float(without.abs().max()) <= torch.finfo(row.unet.dtype).max < largest:
        return "adapter", f"with {_titles(row)} {reaches}"
    if isinstance(module, AttentionProjections):
        return "scores", f"queries, keys and values are finite, and so is the result in float32 (to {largest:.4g})"
    return "overflow", reaches


def _broken_slots(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The buffer of a layer's slots, of those that the row uses, that is not finite."""
    slots = getattr(module, "slots", None)
    used = next((one for one in (*args, *kwargs.values()) if isinstance(one, WeightRows)), None)
    if not isinstance(slots, Slots) or used is None:
        return ""
    indices = used.slots[0][used.gains[0] != 0]
    return next((name for name in ("down", "up") if not is_finite(getattr(slots, name)[indices])), "")


def titles_of(row: Row) -> str:
    """The LoRA that act in a row and their scales, in words; empty where none does."""
    inputs = () if row.adapters is None else row.adapters.inputs
    scaled: list[Any] = [one for each in inputs if (one := getattr(each, "scaled", None)) is not None]
    return " and ".join(f"{one.layers.title} at scale {one.gain:g}" for one in scaled)


def _titles(row: Row) -> str:
    return titles_of(row) or "an adapter"


def _name(row: Row) -> str:
    return str(row.unet.dtype).removeprefix("torch.")
