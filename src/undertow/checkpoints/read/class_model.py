"""A class-conditional pixel model read from a folder: its network, mathematics and class names."""

from dataclasses import dataclass
from pathlib import Path

import torch

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.place import require_class_model
from undertow.checkpoints.identify.pipeline_folder import SCHEDULER
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.diffusion.paths import Path as NoisePath
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.errors import UnknownCheckpoint, naming_file
from undertow.unet.config import ClassLabels
from undertow.unet.unet import UNet

CLASSES = "classes.json"
"""Its class_names are the classes' names, by label."""


@dataclass(frozen=True, kw_only=True)
class ClassModel:
    """A network that draws pictures of a class, and the mathematics it was trained with."""

    unet: UNet
    scheduler: SchedulerConfig
    class_names: tuple[str, ...]

    @property
    def path(self) -> NoisePath:
        """The path from data to noise."""
        return self.scheduler.schedule.path

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", if the network has one."""
        match self.unet.config.added:
            case ClassLabels(count=count, null=True):
                return count
            case _:
                return None


def load_class_model(
    folder: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = torch.float32
) -> ClassModel:
    """The model of a run folder, or of any folder in diffusers' pipeline layout with a class-conditional UNet2DModel.

    Errors: `UnknownCheckpoint`, `CorruptFile`, `KeyMismatch`, `ConfigError`.
    """
    folder = Path(folder)
    require_class_model(folder)
    with naming_file(folder / SCHEDULER):
        scheduler = SchedulerConfig.from_diffusers(read_json(folder / SCHEDULER))
    unet = load_unet_folder(folder / "unet", dtype=dtype, device=device)
    added = unet.config.added
    if not isinstance(added, ClassLabels):
        raise UnknownCheckpoint(folder / "unet", "its network has no class labels", "give a class-conditional model")
    return ClassModel(unet=unet, scheduler=scheduler, class_names=_class_names(folder / CLASSES, added.count))


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    """Names by label; numbers when the folder has none."""
    if not path.is_file():
        return tuple(map(str, range(count)))
    names = read_json(path).get("class_names")
    if not isinstance(names, list) or len(names) != count:
        raise UnknownCheckpoint(path, f"its class_names are {names!r}, not {count} names", "write one name per class")
    return tuple(map(str, names))
