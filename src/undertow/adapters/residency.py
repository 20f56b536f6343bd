"""Where an adapter's changes live: in slots, or in the weights. A pure decision, with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from undertow.adapters.adapter import Placing
from undertow.adapters.lora.bank import Bank
from undertow.adapters.lora.updates import Update
from undertow.errors import InvalidInput

Residency = Literal["banked", "merged"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """residency: where. reason: why."""

    residency: Residency
    reason: str


def choose_residency(title: str, updates: Mapping[str, Update], bank: Bank | None, wanted: Placing) -> Decision:
    """Banked where that is exact and there is room, so that rows with other adapters share its batches; else merged,
    which suits every kind, but only rows with the very same merged adapters share a batch.

    Errors: `InvalidInput` when "banked" was asked for and cannot be.
    """
    if wanted == "merged":
        return Decision(residency="merged", reason="as asked")
    objection = "the model was loaded without slots" if bank is None else bank.objection(updates)
    if objection is None:
        return Decision(residency="banked", reason="low-rank changes that fit the slots: unlike rows share a batch")
    if wanted == "banked":
        raise InvalidInput(
            f"residency of {title}",
            "'banked'",
            f"'merged' or 'auto', because {objection}",
            "or load the model with adapter_capacity=AdapterCapacity(slots=..., rank=..., sites=...) that has room",
        )
    return Decision(residency="merged", reason=objection)
