"""Which weights learn, and how fast."""

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from undertow.errors import ConfigError

COOLDOWN = 0.2
"""Share of a trapezoid's steps over which the learning rate falls."""


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stops the parameters whose names match any of `patterns` (`fnmatch`: "down_blocks.*", "*.attentions.*") from
    learning and returns their names.

    Errors: `ConfigError` for a pattern that matches nothing, or when nothing is left to learn.
    """
    parameters = dict(module.named_parameters())
    frozen: list[str] = []
    for pattern in patterns:
        matching = fnmatch_names(parameters, pattern)
        if not matching:
            tops = ", ".join(dict.fromkeys(f"{name.split('.')[0]}.*" for name in parameters))
            raise ConfigError("freeze", pattern, f"matches no parameter; patterns that do are {tops}")
        frozen += matching
    if len(set(frozen)) == len(parameters):
        raise ConfigError("freeze", list(patterns), "leaves nothing to train")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return list(dict.fromkeys(frozen))


def fnmatch_names(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match, case-sensitively on every system."""
    return [name for name in names if fnmatchcase(name, pattern)]


def adamw(module: nn.Module, *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over the parameters that learn; biases and gains of norms do not decay.

    Its learning rate is set at each step, see `learning_rate_at`.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas)


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int, decay: str) -> float:
    """Learning rate of step 1 ... steps: linear from 0 to `peak` over the warm-up, then constant, or along half a
    cosine to 0 (arXiv:1608.03983, eq. 5), or as a trapezoid: constant, then linear to 0 over the last steps, so that a
    run can be made longer until the fall begins (arXiv:2405.18392)."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    if decay == "constant":
        return peak
    if decay == "trapezoid":
        return peak * min(1.0, (steps - step) / max(1.0, COOLDOWN * steps))
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For all parameters, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
