"""Converts checkpoints between single files and diffusers folders, and to another type."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.destination import require_destination, require_elsewhere
from undertow.checkpoints.files.gguf_types import require_quantization
from undertow.checkpoints.files.words import read_vocabulary, write_vocabulary
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions
from undertow.checkpoints.identify.few_steps import FEW_STEP_SCHEDULERS, SUGGESTED_STEPS
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.identify.pipeline_folder import SCHEDULER
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.read.dtypes import require_dtype
from undertow.checkpoints.write.diffusers_folder import write_folder
from undertow.checkpoints.write.export import TEXT_KINDS, ExportedPipeline, export_pipeline
from undertow.checkpoints.write.gguf_file import write_gguf
from undertow.checkpoints.write.ldm_file import write_ldm
from undertow.encoders.clip_config import CLIP_VOCABULARY
from undertow.quantization import Quantization

WORDS = f"{ROOT}embeddings.token_embedding.weight"


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    dtype: torch.dtype | None = None,
    gguf_type: str | None = None,
    opening: OpenOptions | None = None,
    overwrite: bool = False,
    quantization: Quantization | None = None,
) -> Path:
    """Writes the checkpoint at `source` to `destination`, one tensor in memory at a time; returns the destination.

    dtype: `None` keeps every tensor unchanged, bit for bit. gguf_type: the type of the matrices in a GGUF file
    (`gguf_types.QUANTIZED`); other tensors stay as they are, or as `dtype` says. overwrite: a file that is there may be
    replaced; a folder that holds anything never is. quantization: of linear layers; without it a quantized model
    becomes a plain one. Errors: every kind of `CheckpointError`, `ConfigError`; `InvalidInput`, also for a destination
    that is there, is a file of the source or lies in its folder; `OSError` when the disk is full, with nothing left
    behind; `MissingDependency` for GGUF without the package.
    """
    require_dtype("dtype", dtype)
    require_quantization("gguf_type", gguf_type, to)
    opening = OpenOptions(prefer_plain=True) if opening is None else opening
    destination = Path(destination)
    with open_checkpoint(source, opening) as checkpoint:
        require_elsewhere("destination", destination, _files(checkpoint))
        require_destination(destination, to, overwrite=overwrite)
        with export_pipeline(checkpoint, dtype, quantization) as pipeline:
            pipeline = replace(pipeline, scheduler=_scheduler(checkpoint.path, opening))
            written = write(pipeline, destination, to, gguf_type)
            words = read_vocabulary(checkpoint.path)
            if words is not None and written.is_dir():
                write_vocabulary(words, written)
            return written


def left_behind(source: Path, written: Path) -> list[str]:
    """What of a model has no place in what was written of it and is missed there, as sentences for people."""
    found: list[str] = []
    sampler = _scheduler_fields(source).get("_class_name")
    if sampler in FEW_STEP_SCHEDULERS and written.is_file():
        found.append(
            f"the file cannot say that it draws with {sampler}: "
            f"give --sampler {'lcm' if sampler == 'LCMScheduler' else 'tcd'} --steps {SUGGESTED_STEPS} --guidance 1"
        )
    with open_checkpoint(written) as checkpoint:
        tokenless = checkpoint.parts.keys() - checkpoint.tokenizers.keys()
        untold = [checkpoint.parts[kind] for kind in TEXT_KINDS if kind in tokenless]
        words = {one.part.shapes(one.weights.tensors)[WORDS][0] for one in untold}
    if words - {CLIP_VOCABULARY}:
        home = repr(source.name) if source.is_dir() else "FOLDER"
        if written.is_file():
            remedy = f"undertow.load(FILE, text={home})"
        else:
            remedy = "it cannot draw before tokenizer/ of the folder that it came from is copied into it"
        found.append(
            f"the {'file' if written.is_file() else 'folder'} holds no tokenizer, and this model has its own: {remedy}"
        )
    return found


def _scheduler(source: Path, opening: OpenOptions) -> Mapping[str, Any]:
    """The fields of a pipeline folder's own scheduler, with which a model goes on drawing as before; without those that
    the one who converts knows better. Of a single file, what LDM's samplers do (`make_ddim_timesteps`)."""
    if source.is_file():
        return {"steps_offset": 1}
    known_better = {
        "prediction_type": opening.prediction is not None,
        "rescale_betas_zero_snr": opening.zero_terminal_snr is not None,
    }
    return {name: value for name, value in _scheduler_fields(source).items() if not known_better.get(name)}


def _scheduler_fields(source: Path) -> Mapping[str, Any]:
    return read_json(source / SCHEDULER) if (source / SCHEDULER).is_file() else {}


def _files(checkpoint: Checkpoint) -> set[Path]:
    """What a checkpoint is read from: the file or folder itself, and each of its files of weights, for links to it."""
    return {checkpoint.path, *(file.path for part in checkpoint.parts.values() for file in part.weights.files)}


def write(pipeline: ExportedPipeline, destination: Path, to: str, gguf_type: str | None = None) -> Path:
    """Writes a pipeline in the format `to`. Errors: `InvalidInput`, `ConfigError`, `OSError`; of GGUF
    `DamagedWeights`, `MissingDependency`."""
    match to:
        case "diffusers":
            return write_folder(pipeline, destination)
        case "gguf":
            return write_gguf(pipeline, destination, gguf_type)
        case _:
            return write_ldm(pipeline, destination)
