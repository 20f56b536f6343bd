"""The folder of a run, in the layout of a diffusers pipeline with our training files beside it.

RUN/model_index.json            which classes of diffusers read the two folders below
RUN/unet/                       averaged weights: config.json, diffusion_pytorch_model.safetensors
RUN/scheduler/                  scheduler_config.json: schedule and prediction type
RUN/classes.json                class names by label
RUN/training/                   config.json, checkpoints/, log.jsonl, loss.png, samples/
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.identify.pipeline_folder import SCHEDULER
from undertow.checkpoints.read.class_model import CLASSES
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.training.log import LOG, TRAINING
from undertow.unet.unet import UNet

MODEL_INDEX = "model_index.json"

OF_MODEL = (MODEL_INDEX, CLASSES, "unet", "scheduler", "config.json", "diffusion_pytorch_model.safetensors")
"""What a run would write over, and other models consist of."""


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run lies."""

    root: Path

    @property
    def training(self) -> Path:
        return self.root / TRAINING

    @property
    def config(self) -> Path:
        return self.training / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.training / "checkpoints"

    @property
    def log(self) -> Path:
        return self.training / LOG

    def samples(self, step: int) -> Path:
        """The sample grid of a step."""
        return self.training / "samples" / f"step-{step:06d}.png"


def save_model(
    root: Path,
    unet: UNet,
    scheduler: SchedulerConfig,
    class_names: Sequence[str],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the files that make a folder a model, each atomically; dtype `None` keeps the network's."""
    save_unet(unet, root / "unet", dtype=dtype)
    scheduler_json = scheduler.to_diffusers()
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", scheduler_json["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (root / SCHEDULER).parent.mkdir(parents=True, exist_ok=True)
    for path, content in (
        (SCHEDULER, scheduler_json),
        (CLASSES, {"class_names": list(class_names)}),
        (MODEL_INDEX, index),
    ):
        write_text(json.dumps(content, indent=2) + "\n", root / path)
