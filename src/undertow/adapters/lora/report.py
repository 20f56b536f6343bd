"""What an adapter's file is and where it fits, as a record: for `undertow inspect` and for whoever loads it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from undertow.adapters.lora.base_model import BaseModel
from undertow.adapters.lora.lora_source import LoraFile
from undertow.adapters.lora.plan import Plan
from undertow.adapters.lora.planned_layer import PlannedLayer
from undertow.checkpoints.keymap.prefixes import TITLES

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """dialects, kinds, networks: layers of each. ranks, alphas: smallest and largest. model: the family it was held
    against, if any. matched, unmatched: names of the file's tensors; without a model, unmatched are those that are no
    adapter's. reshaped: layers that the model has in another shape. embeddings: names of bundled textual inversions.
    dtypes: number of values by stored type."""

    path: Path
    dialects: Mapping[str, int]
    kinds: Mapping[str, int]
    networks: Mapping[str, int]
    ranks: tuple[int, int] | None
    alphas: tuple[float, float] | None
    base: BaseModel | None
    layers: int
    model: str | None = None
    matched: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size_bytes: int = 0
    dtypes: Mapping[torch.dtype, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def report_on_plan(file: LoraFile, plan: Plan) -> LoraReport:
    """The report on a file, from its plan."""
    layers, names = plan.layers, file.names
    tensors = file.weights.tensors
    dtypes: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        dtypes[info.dtype] += info.count
    networks = [TITLES[place.network] for place in (*plan.matched, *plan.reshaped)]
    unplaced = [_network_by_name(each.layer.stem) for each in plan.unmatched]
    return LoraReport(
        path=file.path,
        dialects=Counter(each.layer.dialect for each in layers),
        kinds=Counter(each.update.kind for each in layers),
        networks=Counter([*networks, *unplaced]),
        ranks=_range(each.update.rank for each in layers),
        alphas=_range(each.alpha for each in layers),
        base=plan.base,
        layers=len(layers),
        model=plan.model,
        matched=_names(plan.matched.values()),
        unmatched=(*(() if plan.model is None else _names(plan.unmatched)), *names.unknown, *names.unread),
        reshaped=tuple(each.layer.stem for each in plan.reshaped.values()),
        embeddings=tuple(names.embeddings),
        notes=tuple(_notes(file, layers)),
        size_bytes=sum(info.size_bytes for info in tensors.values()),
        dtypes=dtypes,
        metadata=file.weights.metadata,
    )


def _notes(file: LoraFile, layers: list[PlannedLayer]) -> Iterable[str]:
    scaled = [each for each in layers if each.update.rank is not None and each.update.kind not in ("oft", "boft")]
    without = sum(each.alpha is None for each in scaled)
    if without:
        yield f"{without} layers have no alpha: their strength is 1, as if alpha were their rank"
    for name, what in file.names.unread.items():
        yield f"{name} is of an adapter with {what}, which is not read"
    if any(each.update.bias_change is not None for each in layers):
        yield "it changes biases too"
    if any(not each.update.additive for each in layers):
        yield "some of its changes depend on the weights: several such adapters have an order"


def _network_by_name(stem: str) -> str:
    for prefixes, title in _BY_NAME.items():
        if stem.startswith(prefixes):
            return title
    return "U-Net" if _UNET_WORDS.intersection(stem.replace(".", "_").split("_")) else "unknown"


_BY_NAME: Mapping[tuple[str, ...], str] = {
    ("unet:",): "U-Net",
    ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g."): "second text encoder",
    ("lora_te", "text_encoder", "text_model."): "text encoder",
    ("lora_unet_", "unet.", "diffusion_model.", "model.diffusion_model."): "U-Net",
}
_UNET_WORDS = {"blocks", "block"}


def _names(layers: Iterable[PlannedLayer]) -> tuple[str, ...]:
    return tuple(name for each in layers for name in each.layer.leaves.values())


def _range(values: Iterable[Number | None]) -> tuple[Number, Number] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
