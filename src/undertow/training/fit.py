"""Training any module whose loss is a function of the step: optimizer, averaged weights, log, checkpoints, resume.

The recipes of latent models and adapters give `fit` their module and their loss. Everything random in a loss comes
from (seed, step), see `randomness`, so that a resumed run gives the weights of an undisturbed one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undertow.errors import CheckpointError, UndertowError
from undertow.training.ema import ExponentialAverage
from undertow.training.log import StepRecord, append_record
from undertow.training.optimizer import COOLDOWN, adamw, learning_rate_at, set_learning_rate
from undertow.training.precision import autocast
from undertow.training.randomness import seed_for
from undertow.training.training_state import SavedState, load_state, save_state, saved_steps


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long, how fast and how often. decay: "constant", "cosine" or "trapezoid", see `learning_rate_at`. batch_size:
    for the log only. precision: of activations, "float32" or "bf16", see `autocast`; weights and gradients are
    float32."""

    steps: int
    batch_size: int
    learning_rate: float
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


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run at one of its steps. network: averaged weights."""

    step: int
    steps: int
    network: nn.Module


def fit(
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    settings: FitSettings,
    folder: Path,
    *,
    recipe: dict[str, Any],
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_checkpoint: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """Trains `module` until `settings.steps` and returns its averaged weights.

    loss_at: the loss of step 1, 2, ... by the module as it is then. folder: gets log.jsonl and checkpoints/; a run
    found there goes on. recipe: JSON that decides the weights beside the settings; a run of another recipe is refused,
    but the number of steps may grow until the learning rate has begun to fall.

    Errors: `CheckpointError` and its kinds; `UndertowError` when the loss stops being a number.
    """
    run = _Run(module, settings, folder, recipe)
    first, seconds = run.resume()
    module.train()
    meter = _Meter(batch_size=settings.batch_size, seconds=seconds)
    for step in range(first, settings.steps + 1):
        meter.add(run.take(step, loss_at))
        saves = step % settings.checkpoint_every == 0 or step == settings.steps
        if saves or step % settings.log_every == 0:
            record = meter.record(step, run.rate_at(step))
            append_record(folder / "log.jsonl", record)
            on_record(record)
        if saves:
            run.save(step, meter.seconds())
            on_checkpoint(Progress(step=step, steps=settings.steps, network=run.average.network))
            meter.skip()
    return run.average.network


class _Run:
    """What training changes, and where it is kept."""

    def __init__(self, module: nn.Module, settings: FitSettings, folder: Path, recipe: dict[str, Any]):
        self.module, self.settings, self.folder = module, settings, folder
        self.average = ExponentialAverage(module, settings.ema_decay)
        self.optimizer = adamw(module, weight_decay=settings.weight_decay, betas=settings.betas)
        self.config = {"settings": asdict(settings) | {"betas": list(settings.betas)}, "recipe": recipe}
        self.device = next(module.parameters()).device

    def resume(self) -> tuple[int, float]:
        """Goes back to the newest checkpoint, if there is one: the step to take next, and the seconds trained."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not saved_steps(self.folder / "checkpoints"):
            return 1, 0.0
        saved = load_state(self.folder / "checkpoints")
        _require_same_run(self.config, saved, self.folder)
        self.module.load_state_dict(saved.tensors["network"])
        self.average.network.load_state_dict(saved.tensors["average"])
        self.optimizer.load_state_dict(saved.tensors["optimizer"])
        return saved.step + 1, saved.seconds

    def take(self, step: int, loss_at: Callable[[int], Tensor]) -> Tensor:
        """One step of the optimizer; returns loss and gradient norm."""
        set_learning_rate(self.optimizer, self.rate_at(step))
        torch.manual_seed(seed_for(self.settings.seed, "dropout", step))
        with autocast(self.settings.precision, self.device):
            loss = loss_at(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.module, step)
        return torch.stack([loss.detach(), norm]).cpu()

    def rate_at(self, step: int) -> float:
        settings = self.settings
        return learning_rate_at(
            step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            steps=settings.steps,
            decay=settings.decay,
        )

    def save(self, step: int, seconds: float) -> None:
        tensors = {
            "network": self.module.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        state = SavedState(step=step, seconds=seconds, config=self.config, tensors=tensors)
        save_state(self.folder / "checkpoints", state, keep=2)


class _Meter:
    """Means of loss and gradient norm since the last record, and the time."""

    def __init__(self, *, batch_size: int, seconds: float):
        self.batch_size = batch_size
        self.since = time.perf_counter()
        self.started = self.since - seconds
        self.sums, self.count = torch.zeros(2), 0

    def add(self, loss_and_norm: Tensor) -> None:
        self.sums, self.count = self.sums + loss_and_norm, self.count + 1

    def record(self, step: int, rate: float) -> StepRecord:
        """The record of the steps since the last one. Errors: `UndertowError` when their loss is not a number."""
        loss, norm = (self.sums / self.count).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UndertowError(
                f"at step {step} the loss is {loss}: training has diverged; lower the learning rate "
                f"(now {rate:g}), or use float32"
            )
        now = time.perf_counter()
        images_per_second = self.count * self.batch_size / (now - self.since)
        self.since, self.sums, self.count = now, torch.zeros(2), 0
        return StepRecord(
            step=step,
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            images_per_second=images_per_second,
            seconds=self.seconds(),
        )

    def seconds(self) -> float:
        """Trained so far, over all sessions of the run."""
        return time.perf_counter() - self.started

    def skip(self) -> None:
        """What happened since the last record counts no longer for speed."""
        self.since = time.perf_counter()


def _require_same_run(wanted: dict[str, Any], saved: SavedState, folder: Path) -> None:
    stored = saved.config
    may_grow = saved.step <= _constant_until(stored["settings"])
    free = {"log_every", "checkpoint_every"} | ({"steps"} if may_grow else set())
    for part in ("settings", "recipe"):
        for name in sorted(wanted[part].keys() | stored[part].keys()):
            before, now = stored[part].get(name), wanted[part].get(name)
            if before != now and not (part == "settings" and name in free):
                raise CheckpointError(
                    folder,
                    f"it belongs to another run: {name} was {before!r} and is now {now!r}",
                    "use the run's own settings, or another folder",
                )


def _constant_until(settings: dict[str, Any]) -> float:
    """The last step whose learning rate does not depend on the number of steps."""
    match settings["decay"]:
        case "constant":
            return math.inf
        case "trapezoid":
            return settings["steps"] * (1 - COOLDOWN)
        case _:
            return 0
