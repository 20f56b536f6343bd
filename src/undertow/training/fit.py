"""The training loop: draw a batch, compute the loss, take an optimizer step, update the moving average, log and save.

Every kind of training passes its module, its dataset and its loss to `fit`. Everything random is derived from the seed
and the step, see `randomness`, so that a run that was killed and resumed ends with exactly the weights of an
uninterrupted one (on the same machine, with the same number of threads).
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from undertow.errors import CheckpointError, ConfigError
from undertow.extras import OF_TRAINING, require_packages
from undertow.free_memory import naming_memory
from undertow.state_dicts import compare_shapes, shapes_of
from undertow.training.devices import ALONE, Devices
from undertow.training.ema import ExponentialMovingAverage
from undertow.training.figures import save_loss_plot
from undertow.training.log import LOG, StepRecord, append_record, read_records
from undertow.training.meter import Meter
from undertow.training.optimizer import OPTIMIZERS, learning_rate_schedule
from undertow.training.precision import autocast
from undertow.training.randomness import seed_for
from undertow.training.run_lock import only_training
from undertow.training.same_run import SCHEDULE_START, schedule_start
from undertow.training.training_state import SavedState, load_state, save_state, saved_steps

Batch = TypeVar("Batch")

CHECKPOINTS, LOSS_PLOT = "checkpoints", "loss.png"


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The settings of the loop.

    steps: number of optimizer steps. batch_size: examples per step over all devices, used for the log. optimizer:
    "adamw" or "muon", see `Muon`. betas: of AdamW's averages. decay: the learning rate schedule, "constant", "cosine"
    or "trapezoid", see `learning_rate_schedule`. precision: the precision of activations, "float32" or "bf16", see
    `autocast`; weights and gradients are always float32. keep_checkpoints: how many of the newest checkpoints are kept.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adamw"
    warmup_steps: int = 100
    decay: str = "trapezoid"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    precision: str = "bf16"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 250
    keep_checkpoints: int = 2

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError("optimizer", self.optimizer, f"must be {' or '.join(map(repr, OPTIMIZERS))}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run at one of its steps. network: the module with its averaged weights (EMA)."""

    step: int
    steps: int
    network: nn.Module


@naming_memory("training", "take a smaller batch, smaller pictures, a smaller rank, or gradient checkpointing")
def fit(
    module: nn.Module,
    dataset: Callable[[int], Batch],
    loss: Callable[[Batch], Tensor],
    settings: FitSettings,
    folder: Path,
    *,
    recipe: dict[str, Any],
    devices: Devices = ALONE,
    resume_step: int | None = None,
    on_start: Callable[[], None] = lambda: None,
    on_resume: Callable[[int], None] = lambda step: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_checkpoint: Callable[[Progress], None] = lambda progress: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> nn.Module:
    """Trains `module` for `settings.steps` steps and returns a copy of it with the averaged weights (EMA).

    dataset: returns the batch of a step; steps count from 1. loss: returns the loss of a batch; it is called under
    autocast when the precision is "bf16". folder: receives log.jsonl, loss.png and checkpoints/; a run that is found
    there is resumed from its newest checkpoint, or from that of `resume_step`. recipe: JSON with everything else that
    determines the weights; a run with another recipe is refused, but the number of steps may grow, see
    `schedule_start`. devices: the processes that train together; only the main process writes files and calls the
    callbacks. on_start: called before the first step, after all checks. on_resume: called with the step of the
    checkpoint that the run goes on from. on_record: called with each line of the log. on_checkpoint: called after each
    checkpoint has been written. on_step: called after each step. stop: asked after each step; when it says yes, a
    checkpoint of the step is written and `KeyboardInterrupt` raised.

    Errors: `CheckpointError` and its kinds before anything is written, also for a folder in which another process
    trains; `MissingDependency`; `UndertowError` when the loss is not finite, in which case the last checkpoint is still
    good.
    """
    require_packages("train", OF_TRAINING)
    run = _Run(module, settings, folder, recipe)
    meter = Meter(batch_size=settings.batch_size, devices=devices)
    with (
        only_training(folder) if devices.is_main else nullcontext(),
        torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []),
    ):
        first = run.resume(resume_step, meter)
        schedule = run.schedule(first)
        if devices.is_main:
            on_start()
            if first > 1:
                on_resume(first - 1)
        module.train()
        for step in range(first, settings.steps + 1):
            torch.manual_seed(seed_for(settings.seed, "dropout", step, devices.rank))
            rate = float(schedule.get_last_lr()[0])
            meter.add(*run.take(step, dataset(step), loss))
            schedule.step()
            # Several devices have to agree on it, which they do not at every step.
            asks = devices.count == 1 or step % settings.log_every == 0
            stops = asks and step < settings.steps and devices.any(stop(), run.device)
            # A record before every checkpoint: weights that have stopped being numbers are never saved.
            saves = stops or step % settings.checkpoint_every == 0 or step == settings.steps
            record = meter.record(step, rate) if saves or step % settings.log_every == 0 else None
            if devices.is_main:
                if record is not None:
                    append_record(folder / LOG, record)
                    on_record(record)
                with meter.paused():
                    progress = Progress(step=step, steps=settings.steps, network=run.ema.network)
                    if saves:
                        run.save(step, meter.seconds())
                        on_checkpoint(progress)
                    on_step(progress)
            if stops:
                raise KeyboardInterrupt
    devices.wait()
    return run.ema.network


class _Run:
    """The module, its moving average and its optimizer, and their checkpoints."""

    def __init__(self, module: nn.Module, settings: FitSettings, folder: Path, recipe: dict[str, Any]):
        self.module, self.settings, self.folder = module, settings, folder
        self.ema = ExponentialMovingAverage(module, settings.ema_decay)
        new = OPTIMIZERS[settings.optimizer]
        self.optimizer = new(module, weight_decay=settings.weight_decay, betas=settings.betas)
        self.config = json.loads(json.dumps({"settings": asdict(settings), "recipe": recipe}))
        self.schedule_start = 0
        self.device = next(module.parameters()).device

    def resume(self, step: int | None, meter: Meter) -> int:
        """Loads the checkpoint of a step, or the newest one if there is any, and returns the next step. meter: goes on
        from the time trained so far. Errors: `CheckpointError` and its kinds."""
        checkpoints = self.folder / CHECKPOINTS
        if step is None and not saved_steps(checkpoints):
            return 1
        saved = load_state(checkpoints, step)
        self.schedule_start = schedule_start(self.config, saved, checkpoints)
        for name, network in (("network", self.module), ("average", self.ema.network)):
            expected, found = shapes_of(network.state_dict()), shapes_of(saved.tensors[name])
            compare_shapes(expected, found).require_none(checkpoints)
            network.load_state_dict(saved.tensors[name])
        try:
            self.optimizer.load_state_dict(saved.tensors["optimizer"])
        except (ValueError, KeyError) as err:
            raise CheckpointError(checkpoints, f"its optimizer state is of another run ({err})") from err
        meter.go_on_from(saved.seconds)
        return saved.step + 1

    def schedule(self, first_step: int) -> LambdaLR:
        """Returns the learning rates from `first_step` on."""
        return learning_rate_schedule(
            self.optimizer,
            peak=self.settings.learning_rate,
            warmup_steps=self.settings.warmup_steps,
            steps=self.settings.steps - self.schedule_start,
            decay=self.settings.decay,
            first_step=first_step - self.schedule_start,
        )

    def take(self, step: int, batch: Batch, loss_of: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
        """Takes one optimizer step and returns the loss and the norm of the gradient before clipping."""
        with autocast(self.settings.precision, self.device):
            loss = loss_of(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.module, step)
        return loss.detach(), norm.detach()

    def save(self, step: int, seconds: float) -> None:
        """Writes a checkpoint and the plot of the loss so far."""
        tensors = {
            "network": self.module.state_dict(),
            "average": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        config = self.config | {SCHEDULE_START: self.schedule_start}
        state = SavedState(step=step, seconds=seconds, config=config, tensors=tensors)
        save_state(self.folder / CHECKPOINTS, state, keep=self.settings.keep_checkpoints)
        save_loss_plot(read_records(self.folder / LOG), self.folder / LOSS_PLOT)
