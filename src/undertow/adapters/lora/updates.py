"""What an adapter's file changes in one layer, whatever it is called there: a new weight and a new bias.

Every kind is used at a gain g as `W' = W + g · change(W)`, where `change` is what the file says at gain 1; so gain 0 is
the base bit for bit, gain 1 is what was trained, and in between the weight moves on a straight line. Formulas as in
KohakuBlueleaf/LyCORIS (`lycoris/functional`), whose forward is the reference for the kinds that it introduced.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Kind = Literal["lora", "locon", "loha", "lokr", "dora", "glora", "ia3", "oft", "boft", "full", "norm"]

AnyTensor = Shaped[Tensor, "..."]
Shape = tuple[int, ...]
Matrix = Float[Tensor, "outputs inputs"]
"""A layer's weight; `inputs` of a convolution counts channels times kernel cells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """A change of rank at most `rank`, as `up @ down`, in float32; scales are folded into `up`."""

    down: Float[Tensor, "rank inputs"]
    up: Float[Tensor, "outputs rank"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Update(ABC):
    """The change of one layer. bias_change: what is added to the bias at gain 1.

    Tensors keep the file's type; everything is computed in float32, on the device of the base weight.
    """

    bias_change: AnyTensor | None = None

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The algorithm, by the name that its files and trainers use."""

    @property
    def rank(self) -> int | None:
        """Of the file's matrices; `None` for kinds without one."""
        return None

    @property
    def additive(self) -> bool:
        """Whether the change of the weight does not depend on the weight, so that several simply add up."""
        return True

    @abstractmethod
    def fits(self, shape: Shape) -> bool:
        """Whether the tensors are those of a layer whose weight has this shape."""

    @abstractmethod
    def change(self, base: AnyTensor) -> AnyTensor:
        """`W' - W` at gain 1, in float32 and the base's shape."""

    def weight(self, base: AnyTensor, gain: float) -> AnyTensor:
        """The layer's weight under this update, in float32."""
        return base.float() + gain * self.on(base.device).change(base)

    def bias(self, base: AnyTensor | None, gain: float) -> AnyTensor | None:
        """The layer's bias under this update, in float32; `None` if it has none and gets none."""
        if self.bias_change is None:
            return None if base is None else base.float()
        if base is None:
            return gain * self.bias_change.float()
        return base.float() + gain * self.bias_change.to(base.device).float().reshape(base.shape)

    @property
    def factored_rank(self) -> int | None:
        """The rank of `factors()`, without computing them."""
        return None

    def factors(self) -> Factors | None:
        """The exact low-rank form of the whole change at gain 1; `None` if there is none, or the bias changes too."""
        return None

    def on(self, device: torch.device | str) -> "Update":
        """The same update with its tensors on another device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[AnyTensor], AnyTensor]) -> "Update":
        """The same update with every tensor replaced by `change(tensor)`."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        changed = {
            name: value.mapped(change) if isinstance(value, Update) else change(value)
            for name, value in values
            if isinstance(value, Tensor | Update)
        }
        return replace(self, **changed)

    @property
    def size_bytes(self) -> int:
        """Memory of its tensors."""
        values = [getattr(self, field.name) for field in fields(self)]
        return sum(
            value.nbytes if isinstance(value, Tensor) else value.size_bytes
            for value in values
            if isinstance(value, Tensor | Update)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """A matrix as a product, without its scale: `left @ right`, in float32."""

    left: Float[Tensor, "outputs rank"]
    right: Float[Tensor, "rank inputs"]

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def matrix(self) -> Matrix:
        return self.left @ self.right


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixUpdate(Update):
    """An update that is a matrix, independent of the weight and reshaped to it: `W' = W + gain · scale · matrix`.

    scale: alpha / rank, as in the file.
    """

    scale: float = 1.0

    @abstractmethod
    def matrix(self) -> Matrix:
        """The change without its scale."""

    @abstractmethod
    def matrix_shape(self) -> tuple[int, int] | None:
        """[outputs, inputs] of `matrix()`, or `None` when the tensors do not fit each other."""

    def fits(self, shape: Shape) -> bool:
        return len(shape) > 1 and self.matrix_shape() == (shape[0], prod(shape[1:]))

    def product(self) -> Product | None:
        """`matrix()` as a product, where its form has one."""
        return None

    def change(self, base: AnyTensor) -> AnyTensor:
        return self.scale * self.matrix().reshape(base.shape)

    def factors(self) -> Factors | None:
        if self.bias_change is not None:
            return None
        product = self.product()
        return None if product is None else Factors(down=product.right, up=self.scale * product.left)


def flat(tensor: AnyTensor) -> Float[Tensor, "rows columns"]:
    """A matrix or a kernel as a matrix of float32."""
    return tensor.float().flatten(1)


def tucker(
    core: Float[Tensor, "left right *kernel"],
    outputs: Float[Tensor, "left outputs"],
    inputs: Float[Tensor, "right inputs"],
) -> Product:
    """`W[o, i, ...] = Σ core[l, r, ...] · outputs[l, o] · inputs[r, i]`, a Tucker-2 form (arXiv:1511.06530, Eq. 4)."""
    return Product(
        left=outputs.float().T,
        right=torch.einsum("lr...,ri->li...", core.float(), inputs.float()).flatten(1),
    )


def product_shape(left: AnyTensor, right: AnyTensor) -> tuple[int, int] | None:
    """[outputs, inputs] of `flat(left) @ flat(right)`; `None` when they do not fit."""
    if left.ndim < 2 or right.ndim < 2 or left.shape[1:].numel() != right.shape[0]:
        return None
    return left.shape[0], right.shape[1:].numel()


def tucker_shape(core: AnyTensor, outputs: AnyTensor, inputs: AnyTensor) -> tuple[int, int] | None:
    """[outputs, inputs] of `tucker(core, outputs, inputs)`; `None` when they do not fit."""
    if core.ndim < 3 or outputs.ndim < 2 or inputs.ndim < 2 or core.shape[:2] != (outputs.shape[0], inputs.shape[0]):
        return None
    return outputs.shape[1:].numel(), inputs.shape[1:].numel() * core.shape[2:].numel()


def vector_fits(vector: AnyTensor | None, outputs: int) -> bool:
    """Whether an optional vector has one number per output."""
    return vector is None or vector.numel() == outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerUpdates:
    """Updates of several layers of a network. key: equal for equal updates, whichever request they belong to. factors:
    of single layers, where they are not 1."""

    key: Hashable
    title: str
    updates: Mapping[str, Update]
    factors: Mapping[str, float]

    def gain(self, layer: str, gain: float) -> float:
        """The gain in one layer."""
        return gain * self.factors.get(layer, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaledUpdates:
    """Updates with the gain at which they act in a row, which is not 0."""

    layers: LayerUpdates
    gain: float

    @property
    def signature(self) -> Hashable:
        """Equal for equal effects."""
        return self.layers.key, self.gain


def changed_layers(scaled: Sequence[ScaledUpdates]) -> list[str]:
    """The layers that any of these change, each once."""
    return list(dict.fromkeys(layer for each in scaled for layer in each.layers.updates))


def updates_for(layer: str, scaled: Sequence[ScaledUpdates]) -> list[tuple[Update, float]]:
    """The updates of one layer with their gains: first, in the given order, those that depend on the weight (DoRA, OFT,
    ...), then those that simply add up."""
    found = [
        (update, each.layers.gain(layer, each.gain))
        for each in scaled
        if (update := each.layers.updates.get(layer)) is not None
    ]
    return sorted(found, key=lambda one: one[0].additive)
