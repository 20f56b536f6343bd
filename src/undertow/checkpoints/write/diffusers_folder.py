"""Writes a pipeline as a diffusers folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.atomic import atomic_folder, write_text
from undertow.checkpoints.files.destination import require_new_folder
from undertow.checkpoints.files.model_folder import CONFIG, WEIGHTS, path_inside
from undertow.checkpoints.identify.text_architecture import layer_count
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.write.export import TEXT_KINDS, ExportedPart, ExportedPipeline
from undertow.checkpoints.write.stream import write_stream
from undertow.diffusion.parameterizations import PARAMETERIZATIONS
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.unet.diffusers_config import config_to_diffusers
from undertow.vae.diffusers_config import vae_config_to_diffusers

TEXT_WEIGHTS = "model.safetensors"
METADATA = {"format": "pt"}
SD2_LAYERS = 24
"""Layers of OpenCLIP-H, whose last one is never used: transformers' version of SD2 omits it."""

FOLDERS: Mapping[TextKind, str] = {
    "clip_l": "text_encoder",
    "openclip_h": "text_encoder",
    "openclip_g": "text_encoder_2",
}


def write_folder(pipeline: ExportedPipeline, folder: Path) -> Path:
    """Writes the folder atomically: a full disk leaves nothing behind.

    Errors: `InvalidInput` when `folder` exists and is not empty.
    """
    require_new_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as draft:
        _write(pipeline, draft)
    return folder


def _write(pipeline: ExportedPipeline, folder: Path) -> None:
    index: dict[str, Any] = {"_class_name": _class(pipeline), "_diffusers_version": "0.30.0"}
    if "unet" in pipeline.components and pipeline.unet_config is not None:
        config = config_to_diffusers(pipeline.unet_config)
        _component(folder / "unet", config, WEIGHTS, pipeline.components["unet"], pipeline.about)
        index["unet"] = ["diffusers", config["_class_name"]]
    if "vae" in pipeline.components and pipeline.vae_config is not None:
        config = vae_config_to_diffusers(pipeline.vae_config)
        _component(folder / "vae", config, WEIGHTS, pipeline.components["vae"], pipeline.about)
        index["vae"] = ["diffusers", config["_class_name"]]
    for kind in TEXT_KINDS:
        if kind in pipeline.components:
            index |= _text(pipeline, kind, folder)
    scheduler = _scheduler(pipeline)
    if scheduler is not None:
        (folder / "scheduler").mkdir()
        write_text(json.dumps(scheduler, indent=2) + "\n", folder / "scheduler" / "scheduler_config.json")
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    if pipeline.family in ("sd1", "sd2"):
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    write_text(json.dumps(index, indent=2) + "\n", folder / "model_index.json")


def _component(
    folder: Path, config: Mapping[str, Any], weights: str, part: ExportedPart, about: Mapping[str, str]
) -> None:
    folder.mkdir()
    write_text(json.dumps(config, indent=2) + "\n", folder / CONFIG)
    write_stream(folder / weights, part.tensors, part.read, {**METADATA, **about}, part.quantized)


def _text(pipeline: ExportedPipeline, kind: TextKind, folder: Path) -> dict[str, Any]:
    """Writes one text encoder and its tokenizer, and returns their entries in the index."""
    name = FOLDERS[kind]
    part, config = pipeline.components[kind], dict(pipeline.text_configs[kind])
    kept = _without_unused(kind, part)
    config["num_hidden_layers"] = layer_count(kept.tensors)  # what transformers will look for
    # Else transformers 5 takes the file's type where diffusers takes float32 for all others, and nothing fits.
    config["torch_dtype"] = "float32"
    _component(folder / name, config, TEXT_WEIGHTS, kept, pipeline.about)
    kind_class = "CLIPTextModelWithProjection" if kind == "openclip_g" else "CLIPTextModel"
    entries: dict[str, Any] = {name: ["transformers", kind_class]}
    tokenizer = pipeline.tokenizers.get(kind)
    if tokenizer is not None:
        target = name.replace("text_encoder", "tokenizer")
        _copy_files(tokenizer, folder / target)
        entries[target] = ["transformers", "CLIPTokenizer"]
    return entries


def _copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder, which has none below, with the permissions of new ones. Errors: `CorruptFile` for
    a link to a place outside the folder."""
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(path_inside(source, file.name), target / file.name)


def _without_unused(kind: TextKind, part: ExportedPart) -> ExportedPart:
    """The part without tensors that transformers' class for this kind does not have."""
    dropped = set[str]() if kind == "openclip_g" else {"text_projection.weight"}
    if kind == "openclip_h" and layer_count(part.tensors) == SD2_LAYERS:
        last = f"{ROOT}encoder.layers.{SD2_LAYERS - 1}."
        dropped |= {name for name in part.tensors if name.startswith(last)}
    tensors = {name: info for name, info in part.tensors.items() if name not in dropped}
    quantized = {layer: scheme for layer, scheme in part.quantized.items() if f"{layer}.weight" in tensors}
    return replace(part, tensors=tensors, quantized=quantized)


def _scheduler(pipeline: ExportedPipeline) -> dict[str, Any] | None:
    parameterization = PARAMETERIZATIONS.get(pipeline.prediction)
    if parameterization is None:
        return None
    made = SchedulerConfig(schedule=pipeline.schedule, parameterization=parameterization).to_diffusers()
    return {**made, **pipeline.scheduler}


def _class(pipeline: ExportedPipeline) -> str:
    match pipeline.family:
        case "sdxl":
            return "StableDiffusionXLPipeline"
        case "sdxl_refiner":
            return "StableDiffusionXLImg2ImgPipeline"
        case "pixels":
            return "DDPMPipeline"
        case _:
            return "StableDiffusionPipeline"
