"""Models that say of themselves that they were distilled to few steps."""

import json
import shutil
from pathlib import Path

from tests.services import copy_pipeline
from undertow.adapters.files.bundled import ADAPTERS
from undertow.embedded import embedded_models
from undertow.training.distillation_export import scheduler_fields
from undertow.training.distillation_losses import LatentConsistency


def distilled_pipeline(folder: Path) -> Path:
    """A copy of the tiny pipeline of SD1."""
    return _distilled(copy_pipeline("sd1", folder))


def distilled_emoji(folder: Path) -> Path:
    """A copy of the embedded model, with its words and without its adapters."""
    return _distilled(shutil.copytree(embedded_models()["emoji"], folder, ignore=shutil.ignore_patterns(ADAPTERS)))


def _distilled(folder: Path) -> Path:
    """Its folder draws with a consistency model's scheduler, as `undertow train distill` writes it."""
    place = folder / "scheduler" / "scheduler_config.json"
    fields = scheduler_fields(LatentConsistency(guidance=5.0)) | {"clip_sample": False}
    place.write_text(json.dumps({**json.loads(place.read_text()), **fields}))
    return folder
