"""How much two changes of one layer have in common: inner products, without forming matrices of low-rank changes."""

from torch import Tensor

from undertow.adapters.lora.additive import Difference
from undertow.adapters.lora.updates import Matrix, MatrixUpdate, Product, Update

Delta = Product | Matrix
"""A layer's change at gain 1, scale included, in float32; of a norm as one row."""


def delta(update: Update) -> Delta | None:
    """The change of the weight, as a product where that is smaller. `None`: only the bias changes, or the change
    depends on the weight."""
    match update:
        case MatrixUpdate():
            product = update.product()
            if product is None or product.rank >= min(product.left.shape[0], product.right.shape[1]):
                return update.scale * update.matrix()
            return Product(left=update.scale * product.left, right=product.right)
        case Difference(weight_change=Tensor() as change):
            return change.float().reshape(1, -1) if update.norm else change.float().flatten(1)
        case _:
            return None


def inner(one: Delta, other: Delta) -> float:
    """`⟨Δ₁, Δ₂⟩ = tr(Δ₁ᵀ Δ₂)`; of products `B A` as `tr((B₁ᵀ B₂)(A₂ A₁ᵀ))`, in rank² numbers."""
    if isinstance(other, Product):
        if isinstance(one, Product):
            return float(((one.left.T @ other.left) * (one.right @ other.right.T)).sum())
        one, other = other, one
    if isinstance(one, Product):
        return float(((one.left.T @ other) * one.right).sum())
    return float((one * other).sum())


def energy(one: Delta) -> float:
    """`‖Δ‖²`, Frobenius."""
    return max(0.0, inner(one, one))
