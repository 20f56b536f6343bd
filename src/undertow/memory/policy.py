"""Which layers run in which precision and where their weights are, as a plan that can be read before anything runs.

Source document 000 (6.4) chooses by available memory: float32 where there is much, float16 where there is less, slicing
where there is little. Precision changes pictures, so that it is chosen among the types that were asked for, in their
order; what is sliced and where weights are follows from the plan in that type. (What the document calls checkpointing
saves nothing without gradients.) Imports no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from undertow.errors import InvalidInput
from undertow.memory.machine import Machine
from undertow.memory.plan import MemoryPlan, plan
from undertow.memory.weights import controlnet_weights, text_weights, unet_weights, vae_weights
from undertow.memory.work import ITEM_BYTES, Subject, Work
from undertow.shortage import size_in_words

Level = Literal["high", "medium", "low"]
"""high: fits as it is in the first type. medium: fits as it is in a later one. low: something has to give way."""


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """How some layers of a network run. layers: in words. weights_bytes: of the whole network. weights, computes: types
    that numbers are stored and computed in. residency: when the weights are in memory. parts: what is computed piece by
    piece; empty where nothing is."""

    network: str
    layers: str
    weights_bytes: int
    weights: str
    computes: str
    residency: str
    parts: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerPolicy:
    """level: how much memory there is for this work. plan: the numbers behind it. rules: in the order of the stages."""

    level: Level
    plan: MemoryPlan
    rules: tuple[LayerRule, ...]


def choose_policy(
    subject: Subject,
    work: Work,
    budget_bytes: int | None,
    *,
    dtypes: Sequence[str] = (),
    machine: Machine | None = None,
) -> LayerPolicy:
    """The first of `dtypes` (the work's own when empty) in which the work fits as it is, else the last one with what
    gives way for it. Errors: `InvalidInput` for unknown types; those of `plan`."""
    asked = tuple(dtypes) or (work.dtype,)
    for dtype in asked:
        if dtype not in ITEM_BYTES:
            raise InvalidInput("dtypes", repr(dtype), f"of {', '.join(ITEM_BYTES)}")
    found = plan(subject, work, budget_bytes, machine=machine)
    for index, dtype in enumerate(asked):
        found = plan(subject, replace(work, dtype=dtype), budget_bytes, machine=machine)
        if found.fits and not found.measures:
            return LayerPolicy(level="medium" if index else "high", plan=found, rules=layer_rules(subject, found.work))
    return LayerPolicy(level="low", plan=found, rules=layer_rules(subject, found.work))


def layer_rules(subject: Subject, work: Work) -> tuple[LayerRule, ...]:
    """How every layer of a model runs in work as it is planned."""
    return tuple(_rules(subject, work))


def _rules(subject: Subject, work: Work) -> Iterator[LayerRule]:
    text = work.dtype if work.text_dtype is None else work.text_dtype
    if subject.text_encoders:
        size = sum(map(text_weights, subject.text_encoders)) * ITEM_BYTES[text]
        yield _rule("text encoders", "all", size, text, text, _kept("text", work, "prompts are read"))
    if subject.controlnet is not None and work.controlnets:
        size = work.controlnets * controlnet_weights(subject.controlnet) * ITEM_BYTES[work.dtype]
        yield _rule("ControlNet", "all", size, work.dtype, work.dtype, _kept("controlnet", work, "pictures are drawn"))
    if subject.unet is not None:
        yield from _unet_rules(unet_weights(subject.unet) * ITEM_BYTES[work.dtype], work)
    if subject.vae is not None:
        dtype = work.dtype if work.vae_dtype is None else work.vae_dtype
        size = vae_weights(subject.vae) * ITEM_BYTES[dtype]
        parts = "" if work.decode_bytes is None else f"exact tiles within {size_in_words(work.decode_bytes)}"
        where = _kept("vae", work, "pictures are decoded")
        yield _rule("VAE", "convolutions, attention", size, dtype, dtype, where, parts)
        yield _rule("VAE", "norms", size, dtype, "float32", where)


def _unet_rules(size: int, work: Work) -> Iterator[LayerRule]:
    where = "layer by layer" if work.offloaded_layers else _kept("unet", work, "pictures are drawn")
    rows = "" if work.rows is None else f"at most {work.rows} {'row' if work.rows == 1 else 'rows'}"
    chunked = f"{work.feed_forward_chunks} parts of the tokens" if work.feed_forward_chunks > 1 else ""
    attention = work.dtype if work.kernel == "chunked" else "float32"
    queries = "parts of the queries" if work.kernel == "chunked" or work.attention_in_parts else ""
    for layers, computes, parts in (
        ("convolutions, projections", work.dtype, ""),
        ("norms", "float32", ""),
        ("attention scores", attention, queries),
        ("feed-forward", work.dtype, chunked),
    ):
        yield _rule("U-Net", layers, size, work.dtype, computes, where, ", ".join(filter(None, (rows, parts))))


def _rule(
    network: str, layers: str, size: int, weights: str, computes: str, residency: str, parts: str = ""
) -> LayerRule:
    return LayerRule(
        network=network,
        layers=layers,
        weights_bytes=size,
        weights=weights,
        computes=computes,
        residency=residency,
        parts=parts,
    )


def _kept(name: str, work: Work, while_: str) -> str:
    return "always" if name in work.keep else f"while {while_}"
