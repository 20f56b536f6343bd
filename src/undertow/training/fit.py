"""Training any module whose loss is a function of the step: optimizer, averaged weights, log, checkpoints, resume.

The recipes of latent models and adapters give `fit` their module and their loss. Everything random in a loss comes
from (seed, step), see `randomness`, so that a resumed run gives the weights of an undisturbed one.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undertow.errors import CheckpointError, UndertowError
from undertow.training.ema import ExponentialAverage
from undertow.training.log import StepRecord, append_record
from undertow.training.optimizer import COOLDOWN, adamw, learning_rate_at, set_learning_rate
from undertow.training.randomness import seed_for
from undertow.training.training_state import SavedState, load_state, save_state, saved_steps


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long, how fast and how often. decay: "constant", "cosine" or "trapezoid", see `learning_rate_at`. batch_size:
    for the log only. precision: of activations, "float32" or "bf16"; weights and gradients are float32."""

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
    average, optimizer = (
        ExponentialAverage(module, settings.ema_decay),
        adamw(module, weight_decay=settings.weight_decay, betas=settings.betas),
    )
    config = {"settings": asdict(settings) | {"betas": list(settings.betas)}, "recipe": recipe}
    folder.mkdir(parents=True, exist_ok=True)
    first, seconds = 1, 0.0
    if saved_steps(folder / "checkpoints"):
        saved = load_state(folder / "checkpoints")
        _require_same_run(config, saved, folder)
        module.load_state_dict(saved.tensors["network"])
        average.network.load_state_dict(saved.tensors["average"])
        optimizer.load_state_dict(saved.tensors["optimizer"])
        first, seconds = saved.step + 1, saved.seconds
    module.train()
    autocast = nullcontext() if settings.precision == "float32" else torch.autocast("cpu", torch.bfloat16)
    started, since, sums, summed = time.perf_counter() - seconds, time.perf_counter(), torch.zeros(2), 0
    for step in range(first, settings.steps + 1):
        rate = learning_rate_at(
            step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            steps=settings.steps,
            decay=settings.decay,
        )
        set_learning_rate(optimizer, rate)
        torch.manual_seed(seed_for(settings.seed, "dropout", step))
        with autocast:
            loss = loss_at(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update(module, step)
        sums, summed = sums + torch.stack([loss.detach(), norm]).cpu(), summed + 1
        last = step == settings.steps
        if step % settings.log_every == 0 or step % settings.checkpoint_every == 0 or last:
            mean_loss, mean_norm = (sums / summed).tolist()
            if not (math.isfinite(mean_loss) and math.isfinite(mean_norm)):
                raise UndertowError(
                    f"at step {step} the loss is {mean_loss}: training has diverged; lower the learning rate "
                    f"(now {rate:g}), or use float32"
                )
            now = time.perf_counter()
            record = StepRecord(
                step=step,
                loss=mean_loss,
                gradient_norm=mean_norm,
                learning_rate=rate,
                images_per_second=summed * settings.batch_size / (now - since),
                seconds=now - started,
            )
            append_record(folder / "log.jsonl", record)
            on_record(record)
            since, sums, summed = now, torch.zeros(2), 0
        if step % settings.checkpoint_every == 0 or last:
            tensors = {
                "network": module.state_dict(),
                "average": average.network.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            state = SavedState(step=step, seconds=time.perf_counter() - started, config=config, tensors=tensors)
            save_state(folder / "checkpoints", state, keep=2)
            on_checkpoint(Progress(step=step, steps=settings.steps, network=average.network))
            since = time.perf_counter()
    return average.network


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
