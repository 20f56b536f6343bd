"""A pipeline to be written: each component's tensors by our names, readable one by one, and their configs."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.dtypes import tensor_info
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.model_folder import CONFIG
from undertow.checkpoints.identify.checkpoint import Checkpoint, PartSource
from undertow.checkpoints.identify.families import FamilyName
from undertow.checkpoints.identify.self_description import described_text
from undertow.checkpoints.identify.text_architecture import transformers_config
from undertow.checkpoints.keymap.prefixes import Component, TextKind
from undertow.checkpoints.read.loading import differences, expected_shapes
from undertow.checkpoints.read.quantizing import find_quantization, require_unquantized
from undertow.diffusion.schedules import Schedule
from undertow.errors import UnsupportedModel
from undertow.known_names import Prediction
from undertow.quantization import METADATA, Quantization, Scheme
from undertow.shapes import AnyTensor
from undertow.state_dicts import Shapes, without_trailing_ones
from undertow.unet.config import UNetConfig
from undertow.vae.config import VAEConfig

TEXT_KINDS: tuple[TextKind, ...] = ("clip_l", "openclip_h", "openclip_g")


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """One component. tensors: types and shapes by our names. read: reads the tensor of one name. quantized: layers
    whose weights are written so."""

    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], AnyTensor]
    quantized: Mapping[str, Scheme] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExportedPipeline:
    """Everything that is written about a checkpoint. text_configs: transformers' config.json, by kind of encoder.
    scheduler: fields of scheduler_config.json in place of those that the schedule gives. quantization: as its headers
    will say."""

    family: FamilyName
    components: Mapping[Component, ExportedPart]
    prediction: Prediction
    schedule: Schedule
    unet_config: UNetConfig | None = None
    vae_config: VAEConfig | None = None
    text_configs: Mapping[TextKind, Mapping[str, Any]] = field(default_factory=dict)
    tokenizers: Mapping[TextKind, Path] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    quantization: Quantization | None = None

    @property
    def about(self) -> dict[str, str]:
        """What headers say of quantization."""
        return {} if self.quantization is None else {METADATA: self.quantization.to_json()}


@contextmanager
def export_pipeline(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, quantization: Quantization | None = None
) -> Generator[ExportedPipeline]:
    """Prepares an opened checkpoint for writing, after strict checks. dtype: `None` keeps every tensor's type.
    quantization: of linear layers, from the numbers of the file.

    Errors: `KeyMismatch`; `InvalidInput` for patterns that match nothing, and a model that is quantized already;
    `UnsupportedModel` for a component that cannot be written.
    """
    found = checkpoint.identification
    if "controlnet" in checkpoint.parts:
        raise UnsupportedModel(checkpoint.path, "a ControlNet", "it is not a pipeline; load it as an adapter")
    shapes: dict[Component, Shapes] = {
        component: _expected(checkpoint, component, source) for component, source in checkpoint.parts.items()
    }
    for component, source in checkpoint.parts.items():
        differences(source, shapes[component]).require_none(source.weights.path)
    if quantization is not None:
        require_unquantized(checkpoint.parts)
    quantized = find_quantization(quantization, checkpoint.parts, lambda: shapes)
    if quantized.rules is not None:
        quantized.rules.require_matches(quantized.candidates)
    with ExitStack() as stack:
        yield ExportedPipeline(
            family=found.family,
            components={
                component: _component(stack, source, shapes[component], dtype, quantized.layers.get(component, {}))
                for component, source in checkpoint.parts.items()
            },
            prediction=found.prediction.value,
            schedule=checkpoint.schedule,
            unet_config=found.config,
            vae_config=checkpoint.vae_config,
            text_configs={
                kind: _text_config(kind, checkpoint.parts[kind], shapes[kind])
                for kind in TEXT_KINDS
                if kind in checkpoint.parts
            },
            tokenizers=checkpoint.tokenizers,
            quantization=quantized.rules,
        )


def _component(
    stack: ExitStack,
    source: PartSource,
    expected: Shapes,
    dtype: torch.dtype | None,
    quantized: Mapping[str, Scheme],
) -> ExportedPart:
    read_file = stack.enter_context(source.weights.reader())
    origins = {ours: (name, mapping) for name, mapping in source.mappings.items() for ours in mapping.ours}

    def convert(name: str, kind: torch.dtype) -> torch.dtype:
        exact = name.endswith(".weight") and name.removesuffix(".weight") in quantized
        return kind if dtype is None or exact or not kind.is_floating_point else dtype

    tensors = {
        ours: tensor_info(convert(ours, source.weights.tensors[origins[ours][0]].dtype), shape)
        for ours, shape in expected.items()
    }

    def read(ours: str) -> AnyTensor:
        name, mapping = origins[ours]
        piece = dict(mapping.split(read_file(name)))[ours]
        return piece.to(tensors[ours].dtype).reshape(expected[ours])

    return ExportedPart(tensors=tensors, read=read, quantized=quantized)


def _expected(checkpoint: Checkpoint, component: Component, source: PartSource) -> Shapes:
    """A component's shapes by our names: those of its network or, for a text encoder, those in the file."""
    shapes = expected_shapes(checkpoint, component)
    if shapes is not None:
        return shapes
    found = source.part.shapes(source.weights.tensors)
    return {name: without_trailing_ones(shape) for name, shape in found.items()}


def _text_config(kind: TextKind, source: PartSource, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any]:
    if source.folder is not None:
        return read_json(source.folder / CONFIG)
    described = described_text(source.weights).get(kind)
    return transformers_config(kind, shapes) if described is None else described
