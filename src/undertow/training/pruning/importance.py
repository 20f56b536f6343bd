"""How much each channel matters to what the network predicts, measured on a few batches.

Removing a channel is scaling what its readers see of it to nothing. To first order this changes the prediction by J d,
where d is that scaling and J the Jacobian: the Taylor criterion of arXiv:1906.10771, of the prediction in place of the
loss. The importance of a channel is E |J d|^2, to second order what its removal adds to the error of distillation from
the unpruned network. The gradient of that error itself is zero where pruning begins, and that of the training loss
(arXiv:2305.10924) is mostly noise for a trained network. |J d|^2 is estimated as E (u . J d)^2 with random probes u
(Hutchinson's estimator), by one backward pass for all channels at once.

Readers are counted, not writers: GroupNorm undoes a scaling of what is written before it.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from undertow.training.pruning.narrowing import Moments
from undertow.training.pruning.spaces import Axis, Spaces
from undertow.unet.unet import UNet

Predict = Callable[[int], Float[Tensor, "batch channels height width"]]
"""The network's prediction for a calibration batch, by its number from 1, with gradients."""


def measured(unet: UNet, predict: Predict, batches: int, seed: int) -> tuple[dict[str, Float64[Tensor, "_"]], Moments]:
    """The importance of every channel by its space, and the squares that LayerNorms receive. predict: of `unet`."""
    spaces = Spaces(unet.config)
    found = {name: torch.zeros(space.size, dtype=torch.float64) for name, space in spaces.spaces.items()}
    generator = torch.Generator().manual_seed(seed)
    parameters = [(name, one) for name, one in unet.named_parameters() if list(_read_by(spaces, name))]
    with _gradients(unet), _squares(unet) as moments:
        for batch in range(1, batches + 1):
            prediction = predict(batch)
            probe = torch.randn(prediction.shape, generator=generator).to(prediction)
            gradients = torch.autograd.grad((probe * prediction).sum(), [one for _, one in parameters])
            changes = {name: torch.zeros(space.size, dtype=torch.float64) for name, space in spaces.spaces.items()}
            for (name, parameter), gradient in zip(parameters, gradients, strict=True):
                _add(changes, spaces, name, (parameter.detach() * gradient).double().cpu())
            for name, change in changes.items():
                found[name] += change.square() / batches
    return found, moments


def _add(changes: dict[str, Tensor], spaces: Spaces, name: str, products: Float64[Tensor, "..."]) -> None:
    for dimension, axis in _read_by(spaces, name):
        along = products.transpose(0, dimension).flatten(1).sum(1)
        for space, part in zip(axis, along.split([spaces.spaces[one].size for one in axis]), strict=True):
            changes[space] += part


def _read_by(spaces: Spaces, name: str) -> Iterator[tuple[int, Axis]]:
    """Dimensions along which a tensor reads spaces: the columns of layers, and the rows of queries, whose products with
    keys no layer reads."""
    axes = spaces.axes.get(name, ())
    if name.endswith("to_q.weight"):
        yield 0, axes[0]
    if len(axes) == 2 and axes[1] and name != "class_embedding.weight":  # a table, whose columns are written
        yield 1, axes[1]


@contextmanager
def _gradients(unet: UNet) -> Generator[None]:
    """Within it, every weight has a gradient."""
    before = [one.requires_grad for one in unet.parameters()]
    unet.requires_grad_(True)
    try:
        yield
    finally:
        for one, needed in zip(unet.parameters(), before, strict=True):
            one.requires_grad_(needed)


@contextmanager
def _squares(unet: UNet) -> Generator[Moments]:
    """Within it, mean squares of what reaches LayerNorms are added up."""
    found: dict[str, Tensor] = {}

    def adding(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].detach().double().flatten(0, -2).square().mean(0).cpu()
            found[name] = found.get(name, torch.zeros_like(squares)) + squares

        return hook

    norms = [(name, one) for name, one in unet.named_modules() if isinstance(one, nn.LayerNorm)]
    handles = [norm.register_forward_pre_hook(adding(f"{name}.weight")) for name, norm in norms]
    try:
        yield Moments(found)
    finally:
        for handle in handles:
            handle.remove()
