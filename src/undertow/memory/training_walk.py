"""A training step on stand-ins: an upper bound, since the backward pass itself is not walked."""

from dataclasses import dataclass, replace

from undertow.memory import unet_walk, weights
from undertow.memory.ledger import Ledger
from undertow.memory.machine import Machine
from undertow.memory.operations import LoraRows, Operations
from undertow.memory.saved import Saved
from undertow.memory.stage_walks import inputs, with_conditioning
from undertow.memory.work import ITEM_BYTES, Subject, TrainingWork, Work
from undertow.unet.config import CrossAttention, UNetConfig

LEARNED = 3
"""Numbers in float32 for each that learns, beside itself and its gradient: its average and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep:
    """What a step takes. held: bytes of weights and of what belongs to each that learns. gradients: bytes that the
    backward pass takes beyond the peak of the forward pass."""

    ledger: Ledger
    held: int
    gradients: int


def train(config: UNetConfig, subject: Subject, work: Work, training: TrainingWork, machine: Machine) -> TrainingStep:
    """One step: what the forward pass keeps for the backward pass, and the gradients of activations and weights as they
    come; an upper bound."""
    full = training.kind == "full"
    work = replace(work, pictures=training.batch, branches=1, rows=None)
    ledger, item, saved = Ledger(ITEM_BYTES[work.dtype]), ITEM_BYTES[work.dtype], Saved(everything=full)
    loras = None if full else LoraRows(per_row=1, rank=training.rank)
    ops = Operations(ledger=ledger, dtype=work.dtype, kernel=work.kernel, machine=machine, loras=loras, saved=saved)
    walk = replace(with_conditioning(config, work, ops, work.cells(subject)), training=training)
    unet_walk.predict(walk, inputs(config, subject, work, ops))
    learned = weights.unet_weights(config) if full else training.rank * ledger.slot_numbers
    gradients = _gradients(config, subject, work) * item
    if full:
        gradients += WEIGHT_COPIES * 4 * weights.largest_convolution(config)
    kept = max(ledger.peak.size, saved.backward_peak(4))
    return TrainingStep(
        ledger=ledger,
        held=weights.unet_weights(config) * (4 if full else item) + (LEARNED + (not full)) * 4 * learned,
        gradients=kept - ledger.peak.size + gradients,
    )


WEIGHT_COPIES = 3
"""Copies of a convolution's weights in the order of oneDNN, while their gradient is computed."""

GRADIENT_MAPS = 18
"""Maps as wide as a level that live at once in the backward pass of its feed-forward layer: gradients of the gated
product, of its factors and of the projection, four and eight times as wide, and of what goes around it."""


def _gradients(config: UNetConfig, subject: Subject, work: Work) -> int:
    """Numbers."""
    height, width = work.cells(subject)
    largest = 0
    for level in config.levels:
        maps = GRADIENT_MAPS if isinstance(level.attention, CrossAttention) else 5
        largest = max(largest, maps * level.channels * height * width)
        height, width = (height + 1) // 2, (width + 1) // 2
    return largest * work.batch
