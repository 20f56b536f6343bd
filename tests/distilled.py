"""Tiny pipelines that say of themselves that they were distilled to few steps."""

import json
from pathlib import Path

from tests.services import copy_pipeline
from undertow.training.distillation_export import scheduler_fields
from undertow.training.distillation_losses import LatentConsistency


def distilled_pipeline(folder: Path, scheduler: str = "LCMScheduler") -> Path:
    """A copy of the pipeline of SD1 whose folder draws with a consistency model's scheduler, as `undertow train
    distill` writes it."""
    place = copy_pipeline("sd1", folder) / "scheduler" / "scheduler_config.json"
    fields = scheduler_fields(LatentConsistency(guidance=5.0)) | {"_class_name": scheduler, "clip_sample": False}
    place.write_text(json.dumps({**json.loads(place.read_text()), **fields}))
    return folder
