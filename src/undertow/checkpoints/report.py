"""What a checkpoint is and contains, as a record: what `undertow inspect FILE` prints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from undertow.checkpoints.files.header import Packed
from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions, PartSource
from undertow.checkpoints.identify.ema import has_ema
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.keymap.prefixes import TITLES, Component
from undertow.checkpoints.read.loading import differences, expected_shapes
from undertow.checkpoints.read.quantizing import stored_quantization
from undertow.quantization import Quantization, QuantizedWeights
from undertow.schedulers.model_sampler import ModelSampler
from undertow.state_dicts import Differences

RUN_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """One part. dtypes: number of values by stored type; of quantized ones, the type that they become. packed: number
    of quantized values, by how they are stored. quantized: what undertow computes with quantized weights, and in how
    many layers. differences: from the network that it is; for text encoders, whose network is built from the file, only
    names without a rule."""

    component: Component
    title: str
    dialect: str
    prefix: str
    tensors: int
    parameters: int
    dtypes: Mapping[torch.dtype, int]
    packed: Mapping[Packed, int] = field(default_factory=dict)
    quantized: QuantizedWeights | None = None
    quantized_layers: int = 0
    differences: Differences = field(default_factory=Differences)

    def size_bytes(self, dtype: torch.dtype) -> int:
        """Size of its parameters in one type, but for quantized ones."""
        saved = 0 if self.quantized is None else self.quantized.saved_bytes(dtype.itemsize)
        return self.parameters * dtype.itemsize - saved


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """Everything that `inspect` shows. sampler: what its folder draws with, or why that is unknown; `None` without a
    scheduler. suggested: fields of a request that it is best drawn with, where the defaults are not right.
    quantization: what it was written with, and computes in. unknown: tensors that belong to no part, which loading
    ignores."""

    path: Path
    identification: Identification
    schedule: str
    sampler: str | None
    suggested: Mapping[str, float] = field(default_factory=dict[str, float])
    components: tuple[ComponentReport, ...]
    quantization: Quantization | None = None
    markers: tuple[str, ...] = ()
    ignored: int = 0
    unknown: tuple[str, ...] = ()
    has_ema: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    health: Health | None = None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.components)

    def dtypes(self) -> dict[torch.dtype, int]:
        """Number of values by stored type, over all parts."""
        total: dict[torch.dtype, int] = {}
        for part in self.components:
            for dtype, count in part.dtypes.items():
                total[dtype] = total.get(dtype, 0) + count
        return total

    def packed(self) -> dict[Packed, int]:
        """Number of quantized values by how they are stored, over all parts."""
        total: dict[Packed, int] = {}
        for part in self.components:
            for packed, count in part.packed.items():
                total[packed] = total.get(packed, 0) + count
        return total

    def run_bytes(self) -> dict[torch.dtype, int]:
        """Size of all weights, by the type that they could be loaded in."""
        return {dtype: sum(part.size_bytes(dtype) for part in self.components) for dtype in RUN_TYPES}


def report_on(source: str | Path, *, opening: OpenOptions | None = None, validate: bool = False) -> CheckpointReport:
    """The report on any checkpoint; no network is loaded. validate: check every value of every tensor, used or not.

    Errors: every kind of `CheckpointError`, `ConfigError`.
    """
    with open_checkpoint(source, opening) as checkpoint:
        contents = checkpoint.contents
        return CheckpointReport(
            path=checkpoint.path,
            identification=checkpoint.identification,
            schedule=str(checkpoint.schedule),
            sampler=_sampler(checkpoint.sampler),
            suggested=checkpoint.suggested,
            components=tuple(
                _component(checkpoint, kind, checkpoint.parts[kind]) for kind in TITLES if kind in checkpoint.parts
            ),
            quantization=stored_quantization(checkpoint.parts),
            markers=() if contents is None else contents.markers,
            ignored=0 if contents is None else len(contents.ignored),
            unknown=() if contents is None else contents.unknown,
            has_ema=contents is not None and has_ema(contents),
            metadata=_metadata(checkpoint),
            health=scan(checkpoint) if validate else None,
        )


def _sampler(found: ModelSampler | str | None) -> str | None:
    return found.describe() if isinstance(found, ModelSampler) else found


def scan(checkpoint: Checkpoint) -> Health:
    """Checks every tensor in the checkpoint's files."""
    health = Health()
    # The parts of a single file share it.
    for source in {id(source.weights): source for source in checkpoint.parts.values()}.values():
        for name, tensor in source.weights.each(list(source.weights.tensors)):
            health.add(f"{source.label}{name}", tensor)
    return health


def _component(checkpoint: Checkpoint, component: Component, source: PartSource) -> ComponentReport:
    part, tensors = source.part, source.weights.tensors
    expected = expected_shapes(checkpoint, component)
    dtypes: dict[torch.dtype, int] = {}
    packed: dict[Packed, int] = {}
    rules = stored_quantization({component: source})
    shapes = part.shapes(tensors) if expected is None else expected
    chosen = {} if rules is None else rules.layers(component, shapes)
    for name in part.mappings:
        info = tensors[name]
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + info.count
        if info.packed is not None:
            packed[info.packed] = packed.get(info.packed, 0) + info.count
    return ComponentReport(
        component=component,
        title=TITLES[component],
        dialect=part.dialect,
        prefix=part.prefix,
        tensors=len(part.mappings),
        parameters=sum(dtypes.values()),
        dtypes=dtypes,
        packed=packed,
        quantized=QuantizedWeights.of(component, chosen, shapes) if chosen else None,
        quantized_layers=len(chosen),
        differences=Differences(unexpected=part.unexpected) if expected is None else differences(source, expected),
    )


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata in the headers of all files."""
    return {key: value for source in checkpoint.parts.values() for key, value in source.weights.metadata.items()}
