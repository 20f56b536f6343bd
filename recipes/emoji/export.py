"""The trained networks as a pipeline folder in diffusers' layout, in float16, with words and card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipes.emoji.card import Stage, write_card
from recipes.emoji.editions import edition_of
from recipes.emoji.text_to_image import OBJECTIVE, TextToImage
from recipes.emoji.tokenizer import vocabulary
from undertow.checkpoints.files.atomic import read_json, write_text
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.words import write_vocabulary
from undertow.checkpoints.identify.pipeline_folder import SCHEDULER
from undertow.checkpoints.identify.text_architecture import transformers_config
from undertow.checkpoints.write.diffusers_folder import write_folder
from undertow.checkpoints.write.export import ExportedPart, ExportedPipeline
from undertow.vae.autoencoder import AutoencoderKL


def export(model: TextToImage, vae: AutoencoderKL, tokenizer: Path, folder: Path, *, stages: Sequence[Stage]) -> Path:
    """Writes `folder` anew; diffusers' StableDiffusionPipeline and `undertow.load` read it. stages: for the card."""
    shutil.rmtree(folder, ignore_errors=True)
    text = _outgoing(model.text.tensors())
    pipeline = ExportedPipeline(
        family="sd1",
        components={"unet": _outgoing(model.unet.state_dict()), "vae": _outgoing(vae.state_dict()), "clip_l": text},
        prediction="v",
        schedule=OBJECTIVE.schedule,
        unet_config=model.unet.config,
        vae_config=vae.config,
        text_configs={
            "clip_l": transformers_config("clip_l", {name: info.shape for name, info in text.tensors.items()})
        },
        tokenizers={"clip_l": tokenizer},
    )
    write_folder(pipeline, folder)
    _add_offset(folder / SCHEDULER)
    edition = edition_of(vae.config.sample_size)
    write_vocabulary(vocabulary(edition.mix), folder)
    write_card(folder, stages, edition)
    return folder


def _add_offset(path: Path) -> None:
    """diffusers' pipeline calls a scheduler without this entry outdated, and warns."""
    write_text(json.dumps(read_json(path) | {"steps_offset": 1}, indent=2) + "\n", path)


def _outgoing(tensors: Mapping[str, Tensor]) -> ExportedPart:
    halves = {name: tensor.detach().to("cpu", torch.float16) for name, tensor in tensors.items()}
    infos = {name: TensorInfo("F16", tuple(tensor.shape)) for name, tensor in halves.items()}
    return ExportedPart(tensors=infos, read=halves.__getitem__)
