"""What a run writes while it trains: config, checkpoints, the model for inference, sample grids, the loss plot."""

import json

from undertow.checkpoints.files.atomic import write_text
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.diffusion.schedules import NoiseSchedule
from undertow.training.config import config_to_json
from undertow.training.devices import Devices
from undertow.training.figures import save_grid, save_loss_plot
from undertow.training.generate import ClassModel, sample_classes, sampling_settings
from undertow.training.log import read_records
from undertow.training.run_folder import save_model
from undertow.training.session import Session
from undertow.training.training_state import save_state
from undertow.unet.config import ClassLabels

PREVIEW_CLASSES = 10
PREVIEW_ROWS = 4
PREVIEW_GUIDANCE = 2.0
PREVIEW_SAMPLER = "dpmpp_2m"  # of either path, and good in few evaluations
PREVIEW_STEPS = 12


class Outputs:
    """Writes the files of one session; only the main process does."""

    def __init__(self, session: Session, devices: Devices):
        self.session = session
        self.devices = devices
        objective = session.config.objective.build()
        self.scheduler = SchedulerConfig(
            schedule=objective.schedule,
            parameterization=objective.parameterization,
            clip=1.0 if isinstance(objective.schedule, NoiseSchedule) else None,  # pixels lie in [-1, 1]
        )

    def begin(self) -> None:
        """The folder, with the run's config."""
        if self.devices.is_main:
            folder = self.session.folder
            folder.training.mkdir(parents=True, exist_ok=True)
            write_text(json.dumps(config_to_json(self.session.config), indent=2) + "\n", folder.config)

    def after_step(self) -> None:
        """What is due at this step."""
        step, config = self.session.step, self.session.config
        last = step == config.steps
        if self.devices.is_main:
            if last or step % config.checkpoint_every == 0:
                self._save()
            if last or step % config.sample_every == 0:
                self._draw()
        if last:
            self.devices.wait()

    def _save(self) -> None:
        session = self.session
        save_model(session.folder.root, session.average.network, self.scheduler, session.pictures.class_names)
        save_state(session.folder.checkpoints, session.saved(), keep=session.config.keep_checkpoints)

    def _draw(self) -> None:
        session = self.session
        save_loss_plot(read_records(session.folder.log), session.folder.loss_plot)
        if not isinstance(session.config.unet.added, ClassLabels):
            return  # samples of unconditional models are drawn by the caller's own code
        model = ClassModel(
            unet=session.average.network, scheduler=self.scheduler, class_names=session.pictures.class_names
        )
        classes = min(PREVIEW_CLASSES, len(model.class_names))
        labels = [label for _ in range(PREVIEW_ROWS) for label in range(classes)]
        guidance = 1.0 if model.null_label is None else PREVIEW_GUIDANCE
        settings = sampling_settings(model.path, sampler=PREVIEW_SAMPLER, steps=PREVIEW_STEPS, guidance=guidance)
        pixels = sample_classes(model, labels, range(len(labels)), settings)
        save_grid(pixels, classes, session.folder.samples(session.step))
