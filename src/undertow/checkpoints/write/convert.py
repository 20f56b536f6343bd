"""Converts checkpoints between single files and diffusers folders, and to another type."""

from pathlib import Path

import torch

from undertow.checkpoints.files.destination import require_destination, require_elsewhere
from undertow.checkpoints.files.gguf_types import require_quantization
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.read.dtypes import require_dtype
from undertow.checkpoints.write.diffusers_folder import write_folder
from undertow.checkpoints.write.export import ExportedPipeline, export_pipeline
from undertow.checkpoints.write.gguf_file import write_gguf
from undertow.checkpoints.write.ldm_file import write_ldm


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    dtype: torch.dtype | None = None,
    quantized: str | None = None,
    opening: OpenOptions | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the checkpoint at `source` to `destination`, one tensor in memory at a time; returns the destination.

    dtype: `None` keeps every tensor unchanged, bit for bit. quantized: the type of the matrices in a GGUF file
    (`gguf_types.QUANTIZED`); other tensors stay as they are, or as `dtype` says. overwrite: a file that is there may be
    replaced; a folder that holds anything never is. Errors: every kind of `CheckpointError`, `ConfigError`;
    `InvalidInput`, also for a destination that is there, is a file of the source or lies in its folder; `OSError` when
    the disk is full, with nothing left behind; `MissingDependency` for GGUF without the package.
    """
    require_dtype("dtype", dtype)
    require_quantization("quantized", quantized, to)
    opening = OpenOptions(prefer_plain=True) if opening is None else opening
    destination = Path(destination)
    with open_checkpoint(source, opening) as checkpoint:
        require_elsewhere("destination", destination, _files(checkpoint))
        require_destination(destination, to, overwrite=overwrite)
        with export_pipeline(checkpoint, dtype) as pipeline:
            return write(pipeline, destination, to, quantized)


def _files(checkpoint: Checkpoint) -> set[Path]:
    """What a checkpoint is read from: the file or folder itself, and each of its files of weights, for links to it."""
    return {checkpoint.path, *(file.path for part in checkpoint.parts.values() for file in part.weights.files)}


def write(pipeline: ExportedPipeline, destination: Path, to: str, quantized: str | None = None) -> Path:
    """Writes a pipeline in the format `to`. Errors: `InvalidInput`, `ConfigError`, `OSError`; of GGUF
    `DamagedWeights`, `MissingDependency`."""
    match to:
        case "diffusers":
            return write_folder(pipeline, destination)
        case "gguf":
            return write_gguf(pipeline, destination, quantized)
        case _:
            return write_ldm(pipeline, destination)
