"""The plan of a loaded model: the same as `undertow plan` makes, with its own networks, types and adapters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.bundled import BundledAdapters
from undertow.adapters.kinds import adapter_title
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.clip_config import ClipTextConfig
from undertow.engine.picture_size import Size
from undertow.memory.machine import this_machine
from undertow.memory.plan import MemoryPlan, plan
from undertow.memory.seconds import read_table
from undertow.memory.subjects import require_size, subject_of
from undertow.memory.work import Work

REFERENCE_TOKENS = 16
"""Of one reference picture, at most: 4 of a plain IP-Adapter, 16 of those called "plus"."""


def plan_model(
    model: LoadedModel,
    *,
    size: Size | None,
    batch: int,
    steps: int,
    guidance: bool,
    adapters: Sequence[Adapter | str | Path],
    bundled: BundledAdapters,
    slots: int | None,
    budget_bytes: int | None,
    rows: int | None = None,
) -> MemoryPlan:
    """slots: for LoRA; `None` merges them. rows: the most of a forward. Errors: those of `UNetService.plan`."""
    unet = model.require_unet()
    text: list[tuple[TextKind, ClipTextConfig]] = []
    if model.text is not None:
        text = [(kind, encoder.config) for kind, encoder in zip(model.text.kinds, model.text.encoders, strict=True)]
    vae = model.vae
    subject = subject_of(model.path.name, unet.config, None if vae is None else vae.config, text)
    own = unet.config.sample_size * subject.factor
    size = (own, own) if size is None else size
    require_size("size", size, subject)
    work = Work(
        size=size,
        pictures=batch,
        branches=2 if guidance else 1,
        rows=rows,
        steps=steps,
        dtype=_name(unet.dtype),
        vae_dtype=None if vae is None else _name(vae.dtype),
        merged=slots is None,
        lora_slots=8 if slots is None else slots,
        **_acting(adapters, bundled),
    )
    device = unet.device.type
    machine = replace(this_machine(), device=device, threads=torch.get_num_threads())
    return plan(subject, work, budget_bytes, table=read_table(device), machine=machine)


def _acting(adapters: Sequence[Adapter | str | Path], bundled: BundledAdapters) -> dict[str, Any]:
    """How many of each kind. Errors: those of `adapter_title`."""
    found = {"loras": 0, "controlnets": 0, "t2i_adapters": 0, "image_tokens": 0}
    for one in adapters:
        title = adapter_title(bundled.locate(one.source if isinstance(one, Adapter) else one))
        if "IP-Adapter" in title:
            pictures = len(one.images()) if isinstance(one, Adapter) else 1
            found["image_tokens"] += REFERENCE_TOKENS * max(1, pictures)
        elif "T2I" in title:
            found["t2i_adapters"] += 1
        else:
            found["controlnets" if "Control" in title else "loras"] += 1
    return found


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
