"""Muon: steps whose matrices are orthogonal, so that every direction of a weight learns at the same pace."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, Jordan's: steepest at 0, and singular values end between 0.7 and 1.2."""

ITERATIONS = 5

ADAMW_SIZE = 0.2
"""Root mean square of the numbers of a step of AdamW, which a step of Muon is scaled to (arXiv:2502.16982, section
2.2), so that both have learning rates of one kind."""

OTHERS_RATE = 0.25
"""Share of the learning rate with which AdamW takes its steps: a rate that is best for the matrices is too high for
gains, biases and thin kernels."""

THINNEST = 32
"""Rows and columns that a matrix must have; below it, as at a convolution of three color channels or in a LoRA of low
rank, AdamW takes its steps."""


class Muon(torch.optim.AdamW):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for matrices and convolutions, AdamW for the rest.

    The step of a matrix is its momentum with all singular values made nearly equal, times a size that AdamW's would
    have. A convolution's kernel is a matrix with a row for each output channel. Groups with `orthogonal` in them are
    Muon's; see `muon` for how parameters are shared out.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes Muon's steps and then AdamW's, whose gradients are the ones that are left."""
        assert closure is None
        for group in self.param_groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, group)
                        parameter.grad = None
        return super().step()

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # which AdamW looks for in every state that it loads
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["step"] += 1
        gradient, momentum, inertia = parameter.grad, state["momentum_buffer"], group["momentum"]
        assert gradient is not None
        momentum.lerp_(gradient, 1 - inertia)
        ahead = gradient.lerp(momentum, inertia)  # Nesterov's
        step = orthogonalize(ahead.reshape(len(ahead), -1)).reshape(ahead.shape)
        size = ADAMW_SIZE * max(len(ahead), ahead[0].numel()) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step.to(parameter.dtype), alpha=-group["lr"] * size)


def orthogonalize(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """A matrix with the same singular vectors, whose singular values are near 1, in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = len(matrix) > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon takes its steps: a weight of a linear layer or a convolution that is not thin."""
    return parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) >= THINNEST


def muon(module: nn.Module, *, weight_decay: float, momentum: float = 0.95, betas: tuple[float, float]) -> Muon:
    """Muon over the matrices among the parameters that learn. Tables of embeddings and what `is_matrix` leaves are
    AdamW's; of those, biases and gains of norms do not decay.

    Its learning rate is that of its schedule, see `learning_rate_schedule`.
    """
    tables = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if is_matrix(parameter) and id(parameter) not in tables]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in learning if id(parameter) not in chosen]

    def group(parameters: Iterable[Tensor], *, orthogonal: bool, decay: float) -> dict[str, Any]:
        share = 1.0 if orthogonal else OTHERS_RATE
        own = {"orthogonal": orthogonal, "momentum": momentum, "rate": share}
        return {"params": list(parameters), "weight_decay": decay} | own

    groups = (
        group(matrices, orthogonal=True, decay=weight_decay),
        group((p for p in others if p.ndim > 1), orthogonal=False, decay=weight_decay),
        group((p for p in others if p.ndim <= 1), orthogonal=False, decay=0.0),
    )
    return Muon([each for each in groups if each["params"]], lr=0.0, betas=betas)
