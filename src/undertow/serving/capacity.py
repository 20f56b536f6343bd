"""Whether a job can ever run here: the forecast of its memory against the budget, before it is accepted. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil
from typing import Any

from undertow.adapters.image_prompt.nearby import described_encoder
from undertow.engine.picture_size import Size, largest_size
from undertow.engine.request import GenerationRequest
from undertow.errors import ConfigError, UndertowError
from undertow.free_memory import host_free_bytes
from undertow.memory.lora_reach import is_of_text, is_outside
from undertow.memory.machine import this_machine
from undertow.memory.plan import MemoryPlan, plan
from undertow.memory.weights import REFERENCE_TOKENS
from undertow.memory.work import ITEM_BYTES, VIT_H, VisionNetwork, Work
from undertow.serving.adapter_room import PER_ROW, RANK, SLOTS
from undertow.serving.amount import rows_of
from undertow.serving.catalog.entries import AdapterEntry, ModelEntry
from undertow.serving.failures import FailureCode, Refused
from undertow.serving.settings import ServerSettings
from undertow.shortage import size_in_words

KEPT = 512
"""Plans that are remembered: jobs of the same model, size and kind share one."""
CHARACTERS = 220
"""Of a prompt that fill a chunk of 75 tokens, at least."""
TRIES = 8


class Capacity:
    """budget_bytes: of a worker, for the whole process; what was free when this was made when the settings do not say,
    and nobody knows where the device is no CPU."""

    def __init__(self, settings: ServerSettings):
        self.device = settings.devices[0].partition(":")[0]
        self.budget_bytes = settings.budget_bytes
        if self.budget_bytes is None and self.device == "cpu":
            self.budget_bytes = host_free_bytes()
        self._plan = lru_cache(maxsize=KEPT)(self._plan_now)

    def require(
        self, request: GenerationRequest, model: ModelEntry, used: dict[str, AdapterEntry], rows: int | None
    ) -> None:
        """rows: of a forward. Errors: `Refused` with the bytes that are needed, and the nearest request that fits."""
        found = self.plan(request, model, used, rows)
        if found is not None and not found.fits:
            raise self._refusal(model, self.work_of(request, model, used, rows), found)

    def plan(
        self, request: GenerationRequest, model: ModelEntry, used: dict[str, AdapterEntry], rows: int | None
    ) -> MemoryPlan | None:
        """The forecast against the budget; `None` where there is no budget, or nothing can be forecast."""
        if self.budget_bytes is None or request.views is not None:  # whose windows need less than the whole picture
            return None
        return self._plan(model, self.work_of(request, model, used, rows))

    def work_of(
        self, request: GenerationRequest, model: ModelEntry, used: dict[str, AdapterEntry], rows: int | None
    ) -> Work:
        """What decides about memory; the number of steps does not."""
        assert model.subject.unet is not None
        kinds = [entry.kind for entry in used.values()]
        item = ITEM_BYTES[model.dtype]
        references = sum(len(one.images()) for one in request.adapters if used_as(used, one.source) == "IP-Adapter")
        longest = max(len(request.prompt), len(request.negative_prompt), 1)
        return Work(
            size=largest_size(request, model.subject.unet.sample_size, model.subject.factor),
            pictures=min(request.count, 16),
            branches=rows_of(request, model),
            rows=rows,
            shared_rows=0 if rows is None else rows,  # with those of other jobs, or padded
            tokens=77 * ceil(longest / CHARACTERS),
            image_tokens=REFERENCE_TOKENS * references,
            references=max(1, references),
            image_encoder=_image_encoder(model, used),
            steps=1,
            dtype=model.dtype,
            vae_dtype=model.vae_dtype,
            copied=model.copies,
            kept_text=True,
            loras=kinds.count("LoRA"),
            lora_slots=SLOTS,
            lora_rank=RANK,
            **_merged(request, [entry for entry in used.values() if entry.kind == "LoRA"]),
            adapter_bytes=sum(
                entry.stored_bytes if entry.kind == "LoRA" else item * entry.numbers
                for entry in used.values()
                if entry.kind in ("LoRA", "T2I-Adapter")
            ),
            image_prompt_bytes=sum(item * entry.numbers for entry in used.values() if entry.kind == "IP-Adapter"),
            controlnets=kinds.count("ControlNet") + kinds.count("Control-LoRA"),
            t2i_adapters=kinds.count("T2I-Adapter"),
        )

    def _plan_now(self, model: ModelEntry, work: Work) -> MemoryPlan | None:
        """`None` for what cannot be forecast, which is not worth a refusal."""
        try:
            machine = this_machine().on(self.device)
            return plan(model.subject, work, self.budget_bytes, machine=machine)
        except (UndertowError, ConfigError):
            return None

    def _refusal(self, model: ModelEntry, work: Work, found: MemoryPlan) -> Refused:
        assert self.budget_bytes is not None
        height, width = work.size
        nearest = self._nearest(model, work)
        numbers: dict[str, Any] = {
            "needed_bytes": found.smallest_bytes,
            "asked_bytes": found.asked_bytes,
            "budget_bytes": self.budget_bytes,
            "nearest": None if nearest is None else {"size": list(nearest)},
        }
        remedy = "no size fits" if nearest is None else f"up to about {nearest[1]}x{nearest[0]} fits"
        return Refused(
            FailureCode.EXCEEDS_CAPACITY,
            f"a picture of {width}x{height} needs at least {size_in_words(found.smallest_bytes)} with {model.name}, "
            f"and {size_in_words(self.budget_bytes)} may be used here: {remedy}",
            numbers,
        )

    def _nearest(self, model: ModelEntry, work: Work) -> Size | None:
        """The largest size of the same shape that fits; `None` where none does."""
        low, high, best = 0.0, 1.0, None
        for _ in range(TRIES):
            share = (low + high) / 2
            size = _scaled(work.size, share, model)
            found = self._plan(model, replace(work, size=size))
            if found is not None and found.fits:
                low, best = share, size
            else:
                high = share
        return best


def _merged(request: GenerationRequest, loras: Sequence[AdapterEntry]) -> dict[str, Any]:
    """Whether LoRA are merged into the weights, of which copies are then kept, and what they change: those that slots
    have no room for, and all that act in one row when they are more than it has slots for."""
    names = [name for one in loras for name in one.layers]
    return {
        "merged": are_merged(request, loras),
        "changes_all": any(map(is_outside, names)),
        "changes_text": any(map(is_of_text, names)),
    }


def are_merged(request: GenerationRequest, loras: Sequence[AdapterEntry]) -> bool:
    """Whether LoRA that are named are added to the weights, and not in slots."""
    names = {one.name for one in loras}
    asked = any(one.residency == "merged" and one.source in names for one in request.all_adapters)
    large = any(one.rank is None or one.rank > RANK for one in loras)
    return bool(loras) and (asked or large or len(loras) > PER_ROW)


def used_as(used: dict[str, AdapterEntry], source: object) -> str | None:
    """The kind of the adapter that a request names so."""
    entry = used.get(str(source))
    return None if entry is None else entry.kind


def _image_encoder(model: ModelEntry, used: dict[str, AdapterEntry]) -> VisionNetwork:
    """With which IP-Adapters read their pictures; the one that most read where none lies beside them."""
    near = (described_encoder(one.path, model.path) for one in used.values() if one.kind == "IP-Adapter")
    return next((VisionNetwork.of(found) for found in near if found is not None), VIT_H)


def _scaled(size: Size, share: float, model: ModelEntry) -> Size:
    """In multiples that every level of the network halves without a rest."""
    unet = model.subject.unet
    assert unet is not None
    unit = model.subject.factor * 2 ** (len(unet.levels) - 1)
    height, width = (max(unit, int(side * share) // unit * unit) for side in size)
    return height, width
