"""Where the image encoder of an IP-Adapter lies that names none. Imports no torch."""

from pathlib import Path

from undertow.checkpoints.files.atomic import read_json
from undertow.encoders.image_config import ClipVisionConfig, vision_config_from_transformers
from undertow.errors import UndertowError

FOLDER = "image_encoder"
CONFIG = "config.json"


def encoder_folders(adapter: Path, model: Path | None) -> list[Path]:
    """Folders that exist: beside the adapter's file, one folder up, as the authors publish it, and in the model's."""
    beside = adapter if adapter.is_dir() else adapter.parent
    # Also the authors' other folder: SDXL's adapters for ViT-H lie beside ViT-bigG's encoder.
    places = [beside / FOLDER, beside.parent / FOLDER, beside.parent / "models" / FOLDER]
    places += [] if model is None else [model / FOLDER]
    return [place for place in places if place.is_dir()]


def described_encoder(adapter: Path, model: Path | None, named: Path | None = None) -> ClipVisionConfig | None:
    """The architecture of the nearest encoder, or of one that is named, from its config alone; `None` where none lies
    near."""
    for folder in encoder_folders(adapter, model) if named is None else [named, named / FOLDER]:
        try:
            return vision_config_from_transformers(read_json(folder / CONFIG))
        except UndertowError:
            continue
    return None
