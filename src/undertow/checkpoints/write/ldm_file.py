"""Writes a pipeline as a single file with LDM's and SGM's names, which every community tool reads."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from undertow.checkpoints.files.dtypes import tensor_info
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.identify.families import FamilyName
from undertow.checkpoints.identify.file_levels import TABLE
from undertow.checkpoints.identify.self_description import describe
from undertow.checkpoints.keymap import (
    BlockLayout,
    TensorMapping,
    openclip_from_ours,
    unet_renaming,
    vae_mapping,
    vae_renaming,
)
from undertow.checkpoints.keymap.prefixes import Component, TextKind
from undertow.checkpoints.write.export import ExportedPart, ExportedPipeline
from undertow.checkpoints.write.stream import write_stream
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import ConfigError
from undertow.known_names import Prediction
from undertow.quantization import Scheme
from undertow.shapes import AnyTensor

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."

TEXT_PREFIXES: Mapping[tuple[FamilyName, TextKind], str] = {
    ("sd1", "clip_l"): "cond_stage_model.transformer.",
    ("sd2", "openclip_h"): "cond_stage_model.model.",
    ("sdxl", "clip_l"): "conditioner.embedders.0.transformer.",
    ("sdxl", "openclip_g"): "conditioner.embedders.1.model.",
    ("sdxl_refiner", "openclip_g"): "conditioner.embedders.0.model.",
}

ARCHITECTURES: Mapping[FamilyName, str] = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl_refiner": "stable-diffusion-xl-v1-refiner",
}
"""modelspec.architecture (https://github.com/Stability-AI/ModelSpec)."""

TOLD: tuple[Prediction, ...] = ("epsilon", "v", "x0")
"""Predictions that a file says alone, without levels of noise that only a folder can hold."""

TensorReader = Callable[[], AnyTensor]


@dataclass(frozen=True)
class LdmContent:
    """What a single file of a pipeline holds, by LDM's names. read: makes the tensor of one name, in its type and
    shape. markers: names of tensors without numbers, which say what shapes do not. metadata: what the header says.
    quantized: the schemes of layers, by name."""

    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], AnyTensor]
    markers: tuple[str, ...]
    metadata: Mapping[str, str]
    quantized: Mapping[str, Scheme]


def ldm_content(pipeline: ExportedPipeline) -> LdmContent:
    """The tensors under LDM's names, and beside them the prediction type, the noise schedule where it is not Stable
    Diffusion's own and, for undertow, the architecture. Errors: `ConfigError` for a network without LDM names (pixel
    models), and for levels of noise that a single file cannot say."""
    schedule = _require_told(pipeline)
    tensors: dict[str, TensorInfo] = {}
    readers: dict[str, TensorReader] = {}
    quantized: dict[str, Scheme] = {}
    for component, part in pipeline.components.items():
        prefix = _prefix(pipeline, component)
        for mapping in _mappings(pipeline, component, part):
            name = prefix + mapping.foreign
            tensors[name], readers[name] = _joined(part, mapping)
            if scheme := _scheme(part, mapping, tensors[name]):
                quantized[name.removesuffix(".weight")] = scheme
    table = replace(schedule, zero_terminal_snr=False)
    if table != NoiseSchedule.scaled_linear():
        tensors[TABLE] = tensor_info(torch.float32, (len(table),))
        readers[TABLE] = lambda: table.alphas_cumprod.float()
    return LdmContent(tensors, lambda name: readers[name](), tuple(_markers(pipeline)), _metadata(pipeline), quantized)


def write_ldm(pipeline: ExportedPipeline, path: Path) -> Path:
    """Writes the file atomically, with one tensor in memory at a time. Errors: as in `ldm_content`."""
    content = ldm_content(pipeline)
    empty = tensor_info(torch.float32, (0,))
    tensors = {**content.tensors, **dict.fromkeys(content.markers, empty)}

    def read(name: str) -> AnyTensor:
        return content.read(name) if name in content.tensors else torch.zeros(0)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_stream(path, tensors, read, content.metadata, content.quantized)
    return path


def _require_told(pipeline: ExportedPipeline) -> NoiseSchedule:
    """The noise schedule, as the marker and the table of a file can say it. Errors: `ConfigError`."""
    schedule = pipeline.schedule
    if not isinstance(schedule, NoiseSchedule) or pipeline.prediction not in TOLD:
        rule = f"has no place in a single file, which holds {', '.join(TOLD)}: save a folder"
        raise ConfigError("prediction", pipeline.prediction, rule)
    usual = len(NoiseSchedule.scaled_linear())
    if len(schedule) != usual:
        raise ConfigError("schedule.steps", len(schedule), f"must be {usual} in a single file: save a folder")
    return schedule


def _mappings(pipeline: ExportedPipeline, component: Component, part: ExportedPart) -> Iterator[TensorMapping]:
    names = part.tensors
    match component:
        case "unet":
            config = pipeline.unet_config
            if config is None or config.context_dim is None:
                raise ConfigError("context_dim", None, "LDM has no names for a U-Net without text: save a folder")
            renaming = unet_renaming(BlockLayout.of_config(config))
            for name in names:
                yield TensorMapping(_required(renaming.to_foreign(name), name), (name,))
        case "vae":
            assert pipeline.vae_config is not None
            renaming = vae_renaming(len(pipeline.vae_config.level_channels), pipeline.vae_config.resnets)
            for name in names:
                yield vae_mapping(_required(renaming.to_foreign(name), name), name)
        case "openclip_h" | "openclip_g":
            yield from openclip_from_ours(names)
        case _:
            yield from (TensorMapping(name, (name,)) for name in names)


def _scheme(part: ExportedPart, mapping: TensorMapping, info: TensorInfo) -> Scheme | None:
    """Of a foreign tensor; `None` for plain ones. What LDM joins, or keeps as a convolution, has no place for scales
    that others read: it is written as it is, and quantized when it is loaded."""
    if len(mapping.ours) != 1 or len(info.shape) != 2 or not mapping.foreign.endswith(".weight"):
        return None
    return part.quantized.get(next(iter(mapping.ours)).removesuffix(".weight"))


def _joined(part: ExportedPart, mapping: TensorMapping) -> tuple[TensorInfo, TensorReader]:
    """The type and shape of a foreign tensor, and how to make it."""
    infos = [part.tensors[name] for name in mapping.ours]
    with torch.device("meta"):
        shape = tuple(mapping.join([torch.empty(info.shape) for info in infos]).shape)
    info = TensorInfo(infos[0].kind, shape)
    # A copy, because a view may not outlive the next reading.
    return info, lambda: mapping.join([part.read(name).clone() for name in mapping.ours]).to(info.dtype)


def _prefix(pipeline: ExportedPipeline, component: Component) -> str:
    match component:
        case "unet":
            return UNET_PREFIX
        case "vae":
            return VAE_PREFIX
        case "clip_l" | "openclip_h" | "openclip_g":
            known = TEXT_PREFIXES.get((pipeline.family, component))
            return f"{component.replace('openclip', 'clip')}.transformer." if known is None else known
        case "controlnet":
            raise ConfigError("component", component, "is not part of a pipeline file")


def _markers(pipeline: ExportedPipeline) -> Iterator[str]:
    if pipeline.prediction == "v":
        yield "v_pred"
    if isinstance(pipeline.schedule, NoiseSchedule) and pipeline.schedule.zero_terminal_snr:
        yield "ztsnr"


def _metadata(pipeline: ExportedPipeline) -> dict[str, str]:
    architecture = ARCHITECTURES.get(pipeline.family)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        **({} if architecture is None else {"modelspec.architecture": architecture}),
        "modelspec.prediction_type": pipeline.prediction,
        **pipeline.about,
        **describe(unet=pipeline.unet_config, vae=pipeline.vae_config, text=dict(pipeline.text_configs)),
    }


def _required(foreign: str | None, name: str) -> str:
    if foreign is None:
        raise ConfigError("name", name, "has no name in LDM's files: save a folder")
    return foreign
