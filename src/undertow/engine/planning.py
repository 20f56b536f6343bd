"""The plan of a loaded model: the same as `undertow plan` makes, with its own networks, types and adapters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.bundled import BundledAdapters
from undertow.adapters.files.opened import open_adapter
from undertow.adapters.image_prompt.nearby import described_encoder
from undertow.adapters.kinds import identify
from undertow.attention.chosen import ChosenAttention, name_of
from undertow.attention.kernel import Requirements
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.clip_config import ClipTextConfig
from undertow.engine.picture_size import Size
from undertow.memory.forecast import Forecast, forecast
from undertow.memory.lora_reach import is_of_text, is_outside
from undertow.memory.machine import Machine, this_machine
from undertow.memory.plan import MemoryPlan, plan
from undertow.memory.seconds import read_table
from undertow.memory.subjects import require_size, subject_of
from undertow.memory.weights import REFERENCE_TOKENS
from undertow.memory.work import VIT_H, Subject, VisionNetwork, Work
from undertow.nn.quantized import quantized_layers
from undertow.processor import has_amx, has_bfloat16
from undertow.quantization import QuantizedWeights
from undertow.unet.attention_calls import attention_calls
from undertow.unet.unet import UNet

CHUNK_TOKENS = 77
"""Of a prompt, and of each region's, of up to 75 tokens."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is planned for. machine: that the U-Net runs on."""

    subject: Subject
    work: Work
    machine: Machine
    fixed_graphs: bool

    def plan(self, budget_bytes: int | None, *, seconds: bool = True) -> MemoryPlan:
        """seconds: whether to say how long it takes, where that was measured. Errors: those of `memory.plan.plan`."""
        return plan(
            self.subject,
            self.work,
            budget_bytes,
            table=read_table(self.machine.device) if seconds else None,
            machine=self.machine,
            fixed_graphs=self.fixed_graphs,
        )

    def forecast(self) -> Forecast:
        """Without a budget, which takes a fraction of a plan's time. Errors: those of `memory.forecast.forecast`."""
        return forecast(self.subject, self.work, self.machine)


def planned(
    model: LoadedModel,
    *,
    size: Size | None,
    batch: int,
    steps: int,
    branches: int,
    adapters: Sequence[Adapter | str | Path],
    bundled: BundledAdapters,
    slots: int | None,
    rows: int | None = None,
    shared_rows: int = 0,
    fixed_graphs: bool = False,
    copied: bool = False,
    regions: int = 0,
) -> Planned:
    """branches: rows of each picture. slots: for LoRA; `None` merges them. rows: the most of a forward.
    shared_rows: as in `Work`. fixed_graphs: as in `memory.plan`. copied: as in `Work`. regions: that see
    prompts of their own by attention. Errors: those of `UNetService.plan`."""
    unet = model.require_unet()
    text: list[tuple[TextKind, ClipTextConfig]] = []
    if model.text is not None:
        text = [(kind, encoder.config) for kind, encoder in zip(model.text.kinds, model.text.encoders, strict=True)]
    vae = model.vae
    quantized = quantized_weights(model)
    subject = subject_of(model.path.name, unet.config, None if vae is None else vae.config, text, quantized)
    own = unet.config.sample_size * subject.factor
    size = (own, own) if size is None else size
    require_size("size", size, subject)
    work = Work(
        size=size,
        pictures=batch,
        branches=branches,
        rows=rows,
        shared_rows=shared_rows,
        regions=regions,
        tokens=CHUNK_TOKENS * (1 + regions),
        steps=steps,
        dtype=_name(unet.dtype),
        vae_dtype=None if vae is None else _name(vae.dtype),
        merged=slots is None,
        kept_text=not fixed_graphs,
        copied=copied,
        lora_slots=8 if slots is None else slots,
        image_dtype="float16" if unet.device.type == "cuda" else None,
        **_acting(adapters, bundled, unet.dtype, model.path),
    )
    work = replace(work, **_kernels(unet, work, subject))
    device = unet.device.type
    machine = replace(this_machine().on(device), threads=torch.get_num_threads())
    return Planned(subject=subject, work=work, machine=machine, fixed_graphs=fixed_graphs)


def quantized_weights(model: LoadedModel) -> list[QuantizedWeights]:
    """What of a loaded model is quantized."""
    networks: dict[str, nn.Module | None] = {"unet": model.unet, "vae": model.vae}
    networks |= {} if model.text is None else {one.kind: one.clip for one in model.text.encoders}
    return [
        QuantizedWeights.of(name, layers, {key: tuple(one.shape) for key, one in network.named_parameters()})
        for name, network in networks.items()
        if network is not None and (layers := quantized_layers(network))
    ]


def _kernels(unet: UNet, work: Work, subject: Subject) -> dict[str, Any]:
    """The attention kernels that the network runs at this size: one for all calls, or call by call."""
    if not isinstance(unet.kernel, ChosenAttention):
        return {"kernel": name_of(unet.kernel) or "auto"}
    found: dict[tuple[int, int], str] = {}
    for call in attention_calls(unet.config, *work.cells(subject), rows=work.batch, dtype=work.dtype):
        requirements = Requirements(
            device=unet.device.type,
            dtype=unet.dtype,
            queries=call.queries,
            keys=call.keys,
            rows=call.rows,
            heads=call.heads,
            head_dim=call.head_dim,
            imitated=unet.dtype == torch.bfloat16 and not has_bfloat16(),
            amx=unet.dtype == torch.bfloat16 and has_amx(),
        )
        found[call.queries, call.keys] = unet.kernel.choice(requirements).name
    names = set(found.values())
    if len(names) == 1:
        return {"kernel": names.pop()}
    return {"kernels": tuple((*key, name) for key, name in found.items())}


def _acting(
    adapters: Sequence[Adapter | str | Path], bundled: BundledAdapters, dtype: torch.dtype, model: Path
) -> dict[str, Any]:
    """How many of each kind, and what their files take in memory. Errors: those of `open_adapter` and `identify`."""
    found, encoder = Counter[str](), VIT_H
    pictures = [1]
    for one in adapters:
        with open_adapter(bundled.locate(one.source if isinstance(one, Adapter) else one)) as opened:
            title, tensors, place = identify(opened)[1], opened.tensors, opened.place
        computed_bytes = sum(tensor.count for tensor in tensors.values()) * dtype.itemsize
        if "IP-Adapter" in title:
            pictures.append(max(1, len(one.images())) if isinstance(one, Adapter) else 1)
            found["image_tokens"] += REFERENCE_TOKENS * pictures[-1]
            found["image_prompt_bytes"] += computed_bytes
            named = None if not isinstance(one, Adapter) or one.encoder is None else Path(one.encoder)
            described = described_encoder(place, model if model.is_dir() else model.parent, named)
            encoder = encoder if described is None else VisionNetwork.of(described)
        elif "T2I" in title:
            found["t2i_adapters"] += 1
            found["adapter_bytes"] += computed_bytes
        elif "Control" in title:
            found["controlnets"] += 1
        else:
            found["loras"] += 1
            found["adapter_bytes"] += sum(tensor.size_bytes for tensor in tensors.values())
            found["changes_all"] |= any(is_outside(name) for name in tensors)
            found["changes_text"] |= any(is_of_text(name) for name in tensors)
    return {
        **found,
        "references": max(pictures),
        "image_encoder": encoder,
        "changes_all": bool(found["changes_all"]),
        "changes_text": bool(found["changes_text"]),
    }


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
