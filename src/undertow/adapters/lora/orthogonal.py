"""OFT and BOFT: the weight's outputs are rotated in blocks (arXiv:2306.07280; arXiv:2311.06243)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.lora.updates import AnyTensor, Kind, Matrix, Shape, Update, flat, vector_fits

TINY = 1e-8
"""LyCORIS adds it to the norm that the constraint is compared with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Orthogonal(Update):
    """`W' = rescale · R W`, where R has one rotation per block of outputs, the Cayley transform of `blocks`.

    blocks: OFT's [count, size, size], or BOFT's [stages, count, size, size], where every stage shuffles the outputs
    (a butterfly) so that blocks mix. constraint: the largest norm of the skew-symmetric matrices; 0 is none.
    rescale: one factor per output.
    """

    blocks: AnyTensor
    constraint: float = 0.0
    rescale: AnyTensor | None = None

    @property
    def kind(self) -> Kind:
        return "boft" if self.blocks.ndim == 4 else "oft"

    @property
    def rank(self) -> int | None:
        return self.blocks.shape[-1]

    @property
    def additive(self) -> bool:
        return False

    def fits(self, shape: Shape) -> bool:
        if len(shape) < 2 or self.blocks.ndim not in (3, 4):
            return False
        count, size, columns = self.blocks.shape[-3:]
        if size != columns or count * size != shape[0] or not vector_fits(self.rescale, shape[0]):
            return False
        # A stage of a butterfly shuffles groups of `2 ** stage` blocks.
        return self.kind == "oft" or (size % 2 == 0 and count % 2 ** (self.blocks.shape[0] - 1) == 0)

    def change(self, base: AnyTensor) -> AnyTensor:
        rotations = self._rotations()
        weight = flat(base)
        if rotations.ndim == 3:
            rotated = _rotate(rotations.mT, weight)
        else:
            rotated = weight
            for stage, rotation in enumerate(rotations):
                rotated = _rotate_shuffled(rotation, rotated, 2**stage)
        if self.rescale is not None:
            rotated = rotated * self.rescale.float().reshape(-1, 1)
        return (rotated - weight).reshape(base.shape)

    def _rotations(self) -> Float[Tensor, "*stages count size size"]:
        """Cayley: `(I + Q)(I - Q)⁻¹` is orthogonal for a skew-symmetric Q."""
        blocks = self.blocks.float()
        skew = blocks - blocks.mT
        norm = torch.linalg.vector_norm(skew) + TINY
        if self.constraint > 0 and norm > self.constraint:
            skew = skew * self.constraint / norm
        identity = torch.eye(blocks.shape[-1], device=blocks.device)
        return (identity + skew) @ torch.linalg.inv(identity - skew)


def _rotate(rotations: Float[Tensor, "count size size"], weight: Matrix) -> Matrix:
    return (rotations @ weight.unflatten(0, rotations.shape[:2])).flatten(0, 1)


def _rotate_shuffled(rotations: Float[Tensor, "count size size"], weight: Matrix, stride: int) -> Matrix:
    """One stage of the butterfly: outputs `stride` half blocks apart meet in a block (arXiv:2311.06243, section 4)."""
    half = stride * (rotations.shape[-1] // 2)
    shuffled = weight.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
    return _rotate(rotations, shuffled).unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
