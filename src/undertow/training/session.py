"""A run while it trains: everything that changes from step to step, new or read back from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.errors import CheckpointError, ConfigError, InvalidInput
from undertow.state_dicts import compare_shapes, shapes_of
from undertow.training.config import TrainingConfig, changed_fields, config_from_json, config_to_json
from undertow.training.devices import Devices
from undertow.training.ema import ExponentialAverage
from undertow.training.optimizer import adamw, freeze
from undertow.training.pictures import Pictures
from undertow.training.randomness import seed_for
from undertow.training.run_folder import RunFolder
from undertow.training.training_state import SavedState, load_state, saved_steps
from undertow.unet.unet import UNet


@dataclass(kw_only=True, eq=False)
class Session:
    """step: steps done. seconds: time trained, over all sessions."""

    config: TrainingConfig
    folder: RunFolder
    pictures: Pictures
    unet: UNet
    average: ExponentialAverage[UNet]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def saved(self) -> SavedState:
        """What a checkpoint has to hold."""
        tensors = {
            "network": self.unet.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return SavedState(step=self.step, seconds=self.seconds, config=config_to_json(self.config), tensors=tensors)

    def restore(self, saved: SavedState, source: Path) -> None:
        """Continue from `saved`. Errors: `KeyMismatch`, `CheckpointError`."""
        for name, unet in (("network", self.unet), ("average", self.average.network)):
            expected, found = shapes_of(unet.state_dict()), shapes_of(saved.tensors[name])
            compare_shapes(expected, found).require_none(source)
            unet.load_state_dict(saved.tensors[name])
        try:
            self.optimizer.load_state_dict(saved.tensors["optimizer"])
        except (ValueError, KeyError) as err:
            raise CheckpointError(source, f"its optimizer state is of another run ({err})") from err
        self.step, self.seconds = saved.step, saved.seconds


def open_session(
    config: TrainingConfig, out: Path, devices: Devices, *, resume: bool, resume_step: int | None
) -> Session:
    """Everything read, built and checked; nothing written.

    Errors: `ConfigError`, `InvalidInput`, `DataError`, `CheckpointError` and its kinds.
    """
    folder = RunFolder(out)
    saved = load_state(folder.checkpoints, resume_step) if resume or resume_step is not None else None
    if saved is not None:
        _require_same_run(config, config_from_json(saved.config), folder.checkpoints)
    elif steps := saved_steps(folder.checkpoints):
        raise InvalidInput(
            "out",
            out,
            "a folder without a run",
            f"it holds one at step {steps[-1]}: go on with --resume, or name another",
        )
    pictures = config.data.open()
    config.require_pictures(pictures)
    unet = _start(config, devices)
    freeze(unet, config.freeze)
    session = Session(
        config=config,
        folder=folder,
        pictures=pictures,
        unet=unet,
        average=ExponentialAverage(unet, config.ema_decay),
        optimizer=adamw(unet, weight_decay=config.weight_decay),
    )
    unet.gradient_checkpointing = config.gradient_checkpointing  # after the average has been copied
    if saved is not None:
        session.restore(saved, folder.checkpoints)
    return session


def stored_config(out: Path) -> TrainingConfig:
    """The config of the run in `out`. Errors: `UnknownCheckpoint`, `CorruptFile`, `ConfigError`."""
    return config_from_json(read_json(RunFolder(out).config))


def _start(config: TrainingConfig, devices: Devices) -> UNet:
    """The network before the first step: random from the seed, or a trained one."""
    if config.start_from is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.seed, "weights"))
            unet = UNet(config.unet)
    else:
        unet = load_unet_folder(config.start_from, dtype=torch.float32)
        if unet.config != config.unet:
            raise ConfigError("start_from", config.start_from, "is a network of another architecture than `unet`")
    return unet.to(devices.device).train()


def _require_same_run(wanted: TrainingConfig, stored: TrainingConfig, place: Path) -> None:
    changed = changed_fields(wanted, stored)
    if changed:
        name = changed[0]
        difference = f"{name} was {getattr(stored, name)!r} and is now {getattr(wanted, name)!r}"
        raise CheckpointError(
            place, f"it belongs to another run: {difference}", "use the run's own settings, or a new --out"
        )
