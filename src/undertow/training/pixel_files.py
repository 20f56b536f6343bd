"""What the run of a pixel model writes beside the files of `fit`: its config, the model for inference, sample grids."""

import json
from dataclasses import dataclass

from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.read.class_model import ClassModel
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.diffusion.schedules import NoiseSchedule
from undertow.engine.class_pictures import sample_classes, sampling_settings
from undertow.training.config import TrainingConfig, config_to_json
from undertow.training.figures import save_grid
from undertow.training.fit import Progress
from undertow.training.run_folder import RunFolder, save_model
from undertow.unet.config import ClassLabels
from undertow.unet.unet import UNet

PREVIEW_CLASSES = 10
PREVIEW_ROWS = 4
PREVIEW_GUIDANCE = 2.0
PREVIEW_SAMPLER = "dpmpp_2m"  # of either path, and good in few evaluations
PREVIEW_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class PixelFiles:
    """Writes the files of one run."""

    folder: RunFolder
    config: TrainingConfig
    class_names: tuple[str, ...]

    @property
    def scheduler(self) -> SchedulerConfig:
        """The mathematics that the model is trained with, for those who draw with it."""
        objective = self.config.objective.build()
        return SchedulerConfig(
            schedule=objective.schedule,
            parameterization=objective.parameterization,
            clip=1.0 if isinstance(objective.schedule, NoiseSchedule) else None,  # pixels lie in [-1, 1]
        )

    def write_config(self) -> None:
        """The run's settings, from which it can be resumed or repeated."""
        write_text(json.dumps(config_to_json(self.config), indent=2) + "\n", self.folder.config)

    def save_model(self, progress: Progress) -> None:
        """Writes the model of a checkpoint."""
        assert isinstance(progress.network, UNet)
        self.write_model(progress.network)

    def write_model(self, unet: UNet) -> None:
        """The files that make the folder a model."""
        save_model(self.folder.root, unet, self.scheduler, self.class_names)

    def draw_samples(self, progress: Progress) -> None:
        """A grid of samples, a column for each class, where one is due. An unconditional model has none: the caller's
        own code draws from it."""
        due = progress.step % self.config.sample_every == 0 or progress.step == progress.steps
        if not due or not isinstance(self.config.unet.added, ClassLabels):
            return
        assert isinstance(progress.network, UNet)
        model = ClassModel(unet=progress.network, scheduler=self.scheduler, class_names=self.class_names)
        classes = min(PREVIEW_CLASSES, len(model.class_names))
        labels = [label for _ in range(PREVIEW_ROWS) for label in range(classes)]
        guidance = 1.0 if model.null_label is None else PREVIEW_GUIDANCE
        settings = sampling_settings(model.path, sampler=PREVIEW_SAMPLER, steps=PREVIEW_STEPS, guidance=guidance)
        pixels = sample_classes(model, labels, range(len(labels)), settings)
        save_grid(pixels, classes, self.folder.samples(progress.step))
