"""Training a class-conditional pixel model: its network, dataset and loss. The loop is `fit`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.destination import require_elsewhere
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.errors import ConfigError, InvalidInput, naming_file
from undertow.training.batches import Batches
from undertow.training.checkpointing import checkpointing
from undertow.training.config import TrainingConfig, config_from_json
from undertow.training.devices import Devices
from undertow.training.fit import fit
from undertow.training.log import StepRecord
from undertow.training.objective import Example, Objective
from undertow.training.optimizer import freeze
from undertow.training.pixel_files import PixelFiles
from undertow.training.randomness import seeded
from undertow.training.run_folder import OF_MODEL, RunFolder
from undertow.training.training_state import find_step, saved_steps
from undertow.unet.conditioning import Conditioning
from undertow.unet.unet import UNet


def train_pixel_model(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    resume_step: int | None = None,
    cpu: bool = False,
    on_resume: Callable[[int], None] = lambda step: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains a model in the folder `out` and returns the folder, which `load_class_model` can then read.

    resume: resume from the newest checkpoint in `out`, or from that of `resume_step`. cpu: do not use accelerators.
    on_resume, on_record, stop: see `fit`; called in the main process, but `stop` in all.

    Errors, all before anything is written: `ConfigError`, `InvalidInput`, `DataError`, `CheckpointError` and its kinds.
    `UndertowError` when the loss is not finite; the last checkpoint is still good then.
    """
    devices, folder = Devices.find(batch_size=config.batch_size, cpu=cpu), RunFolder(Path(out))
    if resume or resume_step is not None:
        find_step(folder.checkpoints, resume_step)
    else:
        _require_no_run(folder)
    if config.start_from is not None:
        require_elsewhere("out", folder.root, [config.start_from])
    pictures = config.data.open()
    config.require_pictures(pictures)
    unet = new_network(config).to(devices.device)
    freeze(unet, config.freeze)
    files = PixelFiles(folder=folder, config=config, class_names=pictures.class_names)
    objective = config.objective.build()
    batches = Batches(pictures=pictures, config=config, rank=devices.rank, count=devices.count)
    with checkpointing(unet, config.gradient_checkpointing):
        average = fit(
            unet,
            _Examples(batches=batches, objective=objective, device=devices.device),
            _Loss(network=devices.distributed(unet)),
            config.fit_settings(),
            folder.training,
            recipe=config.recipe(),
            devices=devices,
            resume_step=resume_step,
            on_start=files.write_config,
            on_resume=on_resume,
            on_record=on_record,
            stop=stop,
            on_checkpoint=files.save_model,
            on_step=files.draw_samples,
        )
    assert isinstance(average, UNet)
    if devices.is_main:  # a run may have been killed after its last checkpoint and before its model was written
        files.write_model(average)
    return folder.root


def new_network(config: TrainingConfig) -> UNet:
    """Returns the network before the first step: randomly initialized from the seed, or loaded from `start_from`.
    Errors: `ConfigError`; `CheckpointError` and its kinds."""
    if config.start_from is None:
        with seeded(config.seed, "weights"):
            return UNet(config.unet)
    unet = load_unet_folder(config.start_from, dtype=torch.float32)
    if unet.config != config.unet:
        raise ConfigError("start_from", config.start_from, "is a network of another architecture than `unet`")
    return unet


def stored_config(out: Path) -> TrainingConfig:
    """Returns the config of the run in `out`. Errors: `UnknownCheckpoint`, `CorruptFile`, `ConfigError`."""
    with naming_file(RunFolder(out).config):
        return config_from_json(read_json(RunFolder(out).config))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labeled:
    """The batch of a step. labels: `None` for a network without classes."""

    example: Example
    labels: Int[Tensor, "batch"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examples:
    """The dataset: returns the batch of a step, on the device."""

    batches: Batches
    objective: Objective
    device: torch.device

    def __call__(self, step: int) -> _Labeled:
        batch = self.batches.at(step)
        example = self.objective.example(batch.x0, batch.noise, batch.u).to(self.device)
        return _Labeled(example=example, labels=None if batch.labels is None else batch.labels.to(self.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loss:
    """The loss of a batch."""

    network: nn.Module

    def __call__(self, batch: _Labeled) -> Tensor:
        example = batch.example
        given = Conditioning(class_labels=batch.labels)
        return example.loss(self.network(example.inputs, example.timesteps.to(torch.float32), given))


def _require_no_run(folder: RunFolder) -> None:
    if steps := saved_steps(folder.checkpoints):
        raise InvalidInput(
            "out",
            folder.root,
            "a folder without a run",
            f"it holds one at step {steps[-1]}: go on with --resume, or name another",
        )
    if not folder.training.is_dir() and (held := [name for name in OF_MODEL if (folder.root / name).exists()]):
        raise InvalidInput("out", folder.root, f"a folder without a model; this one holds {held[0]}", "name another")
