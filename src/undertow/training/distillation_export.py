"""A distilled or pruned model as a diffusers folder: its U-Net among the other parts of its pipeline."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from undertow.checkpoints.files.dtypes import tensor_info
from undertow.checkpoints.files.words import write_vocabulary
from undertow.checkpoints.identify.checkpoint import OpenOptions
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.read.model import LoadedModel
from undertow.checkpoints.write.diffusers_folder import write_folder
from undertow.checkpoints.write.export import ExportedPart, export_pipeline
from undertow.training.distillation import Method
from undertow.training.distillation_losses import ConsistencyTuning, LatentConsistency
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL

NOTHING: Mapping[str, Any] = MappingProxyType({})

TUNED_STEPS = 50
"""`original_inference_steps` of a tuned model, which learned all levels: diffusers' own."""


def write_distilled(
    unet: UNet, model: LoadedModel, method: Method, folder: Path, vae: AutoencoderKL | None = None
) -> Path:
    """Writes a student as its method wants it drawn, see `write_with_unet`. vae: in place of the model's."""
    return write_with_unet(unet, model, folder, scheduler_fields(method), vae)


def write_with_unet(
    unet: UNet,
    model: LoadedModel,
    folder: Path,
    scheduler: Mapping[str, Any] = NOTHING,
    vae: AutoencoderKL | None = None,
) -> Path:
    """Writes the folder, which must not be there or be empty, and returns it. The U-Net has the type that the model's
    has in its file; all other tensors are the model's, bit for bit, unless there is another autoencoder. scheduler:
    fields of its config in place of the model's. Errors: those of `write_folder`, and `CheckpointError` for a model
    whose file is no longer there."""
    with (
        open_checkpoint(model.path, OpenOptions(prefer_plain=True)) as checkpoint,
        export_pipeline(checkpoint) as found,
    ):
        changed = {"unet": _part(unet, found.components["unet"])}
        if vae is not None:
            changed["vae"] = _part(vae, found.components["vae"])
        pipeline = replace(
            found,
            components={**found.components, **changed},
            unet_config=unet.config,
            vae_config=found.vae_config if vae is None else vae.config,
            scheduler=scheduler,
        )
        write_folder(pipeline, folder)
    vocabulary = model.require_text().vocabulary
    if vocabulary is not None:
        write_vocabulary(vocabulary, folder)
    return folder


def _part(network: nn.Module, before: ExportedPart) -> ExportedPart:
    """A network's weights, in the type of those before."""
    dtype = next(iter(before.tensors.values())).dtype
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in network.state_dict().items()}
    return ExportedPart(
        tensors={name: tensor_info(dtype, tuple(tensor.shape)) for name, tensor in tensors.items()},
        read=lambda name: tensors[name].contiguous(),
    )


def scheduler_fields(method: Method) -> dict[str, Any]:
    """What a folder says about how it is drawn: consistency models by `LCMScheduler`. diffusers' pipeline calls one
    without this steps_offset outdated, which it does not read."""
    match method:
        case LatentConsistency(original_steps=count):
            pass
        case ConsistencyTuning():
            count = TUNED_STEPS
        case _:
            return {}
    return {"_class_name": "LCMScheduler", "original_inference_steps": count, "steps_offset": 1}
