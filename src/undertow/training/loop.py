"""The training loop: draw a batch, predict, step, average; log, draw samples and save every so often.

Everything random comes from (seed, step), see `randomness`; so a run that was killed and resumed from a checkpoint
gives the weights, bit by bit, that it would have given undisturbed (same machine, same number of threads).
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from undertow.errors import UndertowError
from undertow.training.batches import Batches
from undertow.training.config import TrainingConfig
from undertow.training.devices import Devices
from undertow.training.log import StepRecord, append_record
from undertow.training.objective import Objective
from undertow.training.optimizer import learning_rate_at, set_learning_rate
from undertow.training.outputs import Outputs
from undertow.training.precision import autocast
from undertow.training.randomness import seed_for
from undertow.training.session import Session, open_session
from undertow.unet.conditioning import Conditioning

OnRecord = Callable[[StepRecord], None]


def train(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    resume_step: int | None = None,
    cpu: bool = False,
    on_record: OnRecord = lambda record: None,
) -> Path:
    """Trains in the folder `out` and returns it; it is then a model that `generate.load_class_model` reads.

    resume: go on from the newest checkpoint in `out`, or from that of `resume_step`. cpu: leave accelerators alone.
    on_record: called with each line of the log, by the process that writes it.

    Errors, all before anything is written: `ConfigError`, `InvalidInput`, `DataError`, `CheckpointError` and its kinds.
    `UndertowError` when the loss stops being a number; the last checkpoint is from before.
    """
    devices = Devices.find(batch_size=config.batch_size, cpu=cpu)
    session = open_session(config, Path(out), devices, resume=resume, resume_step=resume_step)
    outputs = Outputs(session, devices)
    outputs.begin()
    with torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else []):
        _run(session, outputs, devices, on_record)
    return Path(out)


def _run(session: Session, outputs: Outputs, devices: Devices, on_record: OnRecord) -> None:
    config, steps = session.config, session.config.steps
    network = devices.distributed(session.unet)
    batches = Batches(pictures=session.pictures, config=config, rank=devices.rank, count=devices.count)
    objective = config.objective.build()
    meter = Meter(config.batch_size, devices)
    started = time.perf_counter() - session.seconds
    for step in range(session.step + 1, steps + 1):
        set_learning_rate(session.optimizer, rate := _learning_rate(config, step))
        torch.manual_seed(seed_for(config.seed, "dropout", step, devices.rank))
        loss, norm = _training_step(session, network, objective, batches, devices, step)
        session.average.update(session.unet, step)
        session.step, session.seconds = step, time.perf_counter() - started
        meter.add(loss, norm)
        # Also before every checkpoint: weights that have stopped being numbers are never saved.
        if step % config.log_every == 0 or step % config.checkpoint_every == 0 or step == steps:
            record = meter.record(step, rate, session.seconds)
            if devices.is_main:
                append_record(session.folder.log, record)
                on_record(record)
        paused = time.perf_counter()
        outputs.after_step()
        meter.since += time.perf_counter() - paused


def _training_step(
    session: Session, network: nn.Module, objective: Objective, batches: Batches, devices: Devices, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update of the weights; returns the loss and the gradient's norm before clipping."""
    batch = batches.at(step)
    example = objective.example(batch.x0, batch.noise, batch.u).to(devices.device)
    labels = None if batch.labels is None else batch.labels.to(devices.device)
    with autocast(session.config.precision, devices.device):
        prediction = network(
            example.inputs,
            example.timesteps.to(torch.float32),
            Conditioning(class_labels=labels),
        )
    loss = example.loss(prediction)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(session.unet.parameters(), session.config.clip_norm)
    session.optimizer.step()
    session.optimizer.zero_grad()
    return loss.detach(), norm.detach()


def _learning_rate(config: TrainingConfig, step: int) -> float:
    return learning_rate_at(
        step, peak=config.learning_rate, warmup_steps=config.warmup_steps, steps=config.steps, decay=config.decay
    )


class Meter:
    """Sums loss and gradient norm between two records, on the device, so that not every step waits for it.

    since: when the steps of the next record began; time spent on other things is added to it.
    """

    def __init__(self, batch_size: int, devices: Devices):
        self.batch_size = batch_size
        self.devices = devices
        self._restart()

    def add(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Take in one step."""
        self.loss, self.norm, self.steps = self.loss + loss, self.norm + norm, self.steps + 1

    def record(self, step: int, learning_rate: float, seconds: float) -> StepRecord:
        """The means since the last record. Errors: `UndertowError` when they are not finite."""
        loss, norm = (self.devices.mean(total / self.steps).item() for total in (self.loss, self.norm))
        if not (torch.tensor([loss, norm]).isfinite().all()):
            raise UndertowError(
                f"at step {step} the loss is {loss} and the gradient's norm {norm}: training has diverged; "
                f"lower the learning rate (now {learning_rate:g}) or clip_norm, or use float32"
            )
        images = self.steps * self.batch_size / (time.perf_counter() - self.since)
        self._restart()
        return StepRecord(
            step=step,
            loss=loss,
            gradient_norm=norm,
            learning_rate=learning_rate,
            images_per_second=images,
            seconds=seconds,
        )

    def _restart(self) -> None:
        self.loss = self.norm = torch.zeros((), device=self.devices.device)
        self.steps, self.since = 0, time.perf_counter()
