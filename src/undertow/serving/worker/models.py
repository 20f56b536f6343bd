"""The models of a worker: loaded when a job wants one, and let go of when another needs their room."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import undertow
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.engine.engine import Engine
from undertow.errors import OutOfMemory
from undertow.free_memory import free_bytes
from undertow.known_names import PRECISIONS
from undertow.memory.forecast import forecast
from undertow.memory.work import Work
from undertow.service import UNetService
from undertow.serving.adapter_room import PER_ROW, RANK, SLOTS
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.catalog.entries import ModelEntry

logger = logging.getLogger(__name__)

CAPACITY = AdapterCapacity(slots=SLOTS, rank=RANK, per_row=PER_ROW)

LOAD_S = 900.0
"""Given to the loading of a model."""

Load = Callable[[ModelEntry, str, bool], UNetService]


@dataclass(kw_only=True, eq=False)
class Loaded:
    """A model in memory. used_at: when a job last was given to it. fault: why it draws no picture of numbers, if so."""

    entry: ModelEntry
    service: UNetService
    needed_bytes: int
    used_at: float = field(default_factory=time.monotonic)
    fault: str = ""
    embeddings: tuple[Path, ...] = ()
    """Files of the textual inversions that prompts know now."""

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def know(self, embeddings: tuple[Path, ...]) -> None:
        """Lets prompts know the textual inversions in these files and no others: which words stand for one must not
        depend on what other jobs asked for. Errors: those of `UNetService.add_embedding`."""
        if embeddings == self.embeddings:
            return
        text = self.service.engine.model.require_text()
        for name in text.embeddings:
            text.remove_embedding(name)
        self.embeddings = ()
        for path in embeddings:
            self.service.add_embedding(path)
        self.embeddings = embeddings


class Models:
    """At most as many models as `budget_bytes` has room for; of those that do nothing, the one that was not used for
    longest goes first. adapters: whether there may be adapters, for which slots are reserved. ready: told of a model
    that was loaded, and how many seconds that took."""

    def __init__(
        self,
        catalog: Catalog,
        device: str,
        *,
        budget_bytes: int | None,
        adapters: bool,
        ready: Callable[[Loaded, float], None] = lambda loaded, seconds: None,
        load: Load | None = None,
    ):
        self.catalog = catalog
        self.device = device
        self.budget_bytes = budget_bytes
        self._adapters = adapters
        self._ready = ready
        self._load = loaded if load is None else load
        self._loaded: dict[str, Loaded] = {}
        self._turn = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong with those that are loaded, by name."""
        return {name: one.fault for name, one in self._loaded.items() if one.fault}

    def get(self, name: str) -> Loaded | None:
        return self._loaded.get(name)

    def fits_now(self, name: str) -> bool:
        """Whether a model is there, or would have room once those are gone that do nothing."""
        there = self._loaded.get(name)
        if there is not None:
            return there.engine.idle or there.entry is self.catalog.model(name)
        if self.budget_bytes is None:
            return True
        busy = [one for one in self._loaded.values() if not one.engine.idle]
        return not busy or sum(one.needed_bytes for one in busy) + self._needed(name) <= self.budget_bytes

    def take(self, name: str) -> Loaded:
        """A model, which is loaded if it is not there. Errors: kinds of `CheckpointError`; `OutOfMemory`; those of
        `Catalog.model`."""
        found = self._loaded.get(name)
        if found is not None and found.entry is not self.catalog.model(name):
            self._let_go(name)  # its files are others now
            found = None
        if found is None:
            entry, needed = self.catalog.model(name), self._needed(name)
            self._make_room(needed)
            started = time.monotonic()
            try:
                service = self._load(entry, self.device, self._slots(entry))
            except OutOfMemory:
                self._make_room(None)
                service = self._load(entry, self.device, self._slots(entry))
            found = Loaded(entry=entry, service=service, needed_bytes=needed)
            self._loaded[name] = found
            seconds = time.monotonic() - started
            logger.info("loaded %s in %.1f s", name, seconds)
            self._ready(found, seconds)
        found.used_at = time.monotonic()
        return found

    def step(self) -> Loaded | None:
        """One unit of work of the next model that has any; returns which."""
        busy = [one for one in self._loaded.values() if not one.engine.idle]
        if not busy:
            return None
        self._turn += 1
        found = busy[self._turn % len(busy)]
        found.engine.step()
        return found

    def close(self) -> None:
        for name in self.names:
            self._let_go(name)

    def _make_room(self, needed_bytes: int | None) -> None:
        """Lets go of idle models until there is room for so much, of all for `None`."""
        idle = sorted((one for one in self._loaded.values() if one.engine.idle), key=lambda one: one.used_at)
        for one in idle:
            held = sum(other.needed_bytes for other in self._loaded.values())
            if needed_bytes is not None and (self.budget_bytes is None or held + needed_bytes <= self.budget_bytes):
                return
            self._let_go(one.entry.name)

    def _let_go(self, name: str) -> None:
        self._loaded.pop(name).engine.close()

    def _needed(self, name: str) -> int:
        entry = self.catalog.model(name)
        return needed_bytes(entry, slots=self._slots(entry))

    def _slots(self, entry: ModelEntry) -> bool:
        """Into quantized weights no LoRA that comes later is merged."""
        return self._adapters or bool(entry.subject.schemes("unet"))


def needed_bytes(entry: ModelEntry, *, slots: bool) -> int:
    """The memory that a model takes with a picture of its own size: the forecast without the process's own. slots:
    whether LoRA have some."""
    work = Work(
        size=(entry.trained_size, entry.trained_size),
        dtype=entry.dtype,
        vae_dtype=entry.vae_dtype,
        kept_text=True,
        loras=CAPACITY.per_row if slots else 0,
        lora_rank=CAPACITY.rank,
        lora_slots=CAPACITY.slots,
        copied=entry.copies,
    )
    return forecast(entry.subject, work).peak_bytes


def loaded(entry: ModelEntry, device: str, adapters: bool) -> UNetService:
    """A model as workers use it: to the bit the same in each."""
    dtype = None if entry.precision is None else getattr(torch, PRECISIONS[entry.precision])
    return undertow.load(
        entry.source,
        dtype=dtype,
        device=device,
        backend=entry.backend or "eager",
        adapter_capacity=CAPACITY if adapters else None,
        quantize=entry.quantize,
    )


def budget_of(device: str, wanted_bytes: int | None) -> int | None:
    """The most memory of a worker: what was asked for, or what is free now; `None` where nobody tells."""
    return free_bytes(torch.device(device)) if wanted_bytes is None else wanted_bytes
