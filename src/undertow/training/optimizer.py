"""Which weights learn, and how fast."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from undertow.errors import ConfigError
from undertow.extras import optional_package
from undertow.training.muon import muon

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

    Its learning rate is that of its schedule, see `learning_rate_schedule`.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas)


OPTIMIZERS = {"adamw": adamw, "muon": muon}
"""By name."""


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, *, peak: float, warmup_steps: int, steps: int, decay: str, first_step: int = 1
) -> LambdaLR:
    """The learning rates of the steps from `first_step` on, by transformers' schedules; `step()` goes on to the next.

    Step 1 is the first above 0. The rate rises linearly to `peak` over the warm-up. decay: "constant"; "cosine", along
    half a cosine to 0 at the last step (arXiv:1608.03983, eq. 5); or "trapezoid", constant, then linear to 0 over the
    last fifth, so that a run can be made longer until the fall begins (arXiv:2405.18392). Errors: `ConfigError`,
    `MissingDependency`.
    """
    with optional_package("transformers", "train"):
        from transformers.optimization import (  # noqa: PLC0415  an extra, and slow to import
            get_constant_schedule_with_warmup,
            get_cosine_schedule_with_warmup,
            get_wsd_schedule,
        )

    for group in optimizer.param_groups:
        # `initial_lr` is what PyTorch wants of an optimizer whose schedule goes on.
        group["initial_lr"] = peak * group.get("rate", 1.0)
    last = first_step - 1
    match decay:
        case "constant":
            return get_constant_schedule_with_warmup(optimizer, warmup_steps, last_epoch=last)
        case "cosine":
            return get_cosine_schedule_with_warmup(optimizer, warmup_steps, steps, last_epoch=last)
        case "trapezoid":
            return get_wsd_schedule(
                optimizer,
                num_warmup_steps=warmup_steps,
                # Not rounded: a fifth of 17 steps is 3.4.
                num_decay_steps=max(1.0, COOLDOWN * steps),  # pyright: ignore[reportArgumentType]
                num_training_steps=steps,
                decay_type="linear",
                last_epoch=last,
            )
        case _:
            raise ConfigError("decay", decay, "must be 'constant', 'cosine' or 'trapezoid'")
