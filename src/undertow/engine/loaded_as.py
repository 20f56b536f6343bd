"""What was chosen where a model is loaded, as its pictures carry it."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from undertow.adapters.lora.bank import AdapterCapacity
from undertow.attention.policy import FASTEST, AttentionPolicy, as_policy
from undertow.embedded import embedded_name
from undertow.engine.computing import Computing, PrecisionName, Slots
from undertow.errors import InvalidInput
from undertow.known_names import PRECISIONS, BackendName, parse_prediction
from undertow.quantization import NONE, Quantization

TYPES: Mapping[torch.dtype | None, PrecisionName] = {
    getattr(torch, long): cast("PrecisionName", short) for short, long in PRECISIONS.items()
}


def computing_of(
    source: str | Path,
    *,
    dtype: torch.dtype | None,
    used: torch.dtype | None,
    vae_dtype: torch.dtype | None,
    prediction: str | None,
    quantize: Quantization | str | Mapping[str, str] | None,
    backend: str,
    attention: str | AttentionPolicy,
    capacity: AdapterCapacity | None,
) -> Computing:
    """The arguments of `undertow.load` that decide bits. used: the type that the U-Net computes in; of the embedded
    models it is written where it is not float32, in which the command line draws with them. backend: that was taken."""
    embedded = embedded_name(source) is not None
    precision = TYPES.get(used if embedded and dtype is None else dtype)
    return Computing(
        prediction=None if prediction is None else parse_prediction(prediction),
        precision=None if embedded and precision == "f32" else precision,
        vae_precision=TYPES.get(vae_dtype),
        quantize=_quantize(quantize),
        backend=None if backend == "eager" else cast("BackendName", backend),
        attention=_attention(attention),
        slots=_slots(capacity),
    )


def _quantize(quantize: Quantization | str | Mapping[str, str] | None) -> str | dict[str, str] | None:
    if quantize is None or isinstance(quantize, str):
        return quantize
    rules = dict(quantize.rules if isinstance(quantize, Quantization) else quantize)
    return rules.get("*", NONE) if list(rules) == ["*"] else rules


def _attention(attention: str | AttentionPolicy) -> str | None:
    policy = as_policy(attention)
    if policy is None:
        return str(attention)
    return None if policy.goal == FASTEST.goal else policy.goal


def _slots(capacity: AdapterCapacity | None) -> Slots | None:
    """`None` for more than a picture may ask for."""
    if capacity is None:
        return None
    try:
        return Slots(slots=capacity.slots, rank=capacity.rank, per_row=capacity.per_row)
    except InvalidInput:
        return None
