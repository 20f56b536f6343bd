"""One tensor of a file and the tensors of ours that it fills, with the change of layout between them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from undertow.shapes import AnyTensor


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """`foreign` is the concatenation of the rows of all of `ours`.

    transposed: the foreign matrix is transposed. convolution: the foreign tensor is a 1x1 convolution where ours is a
    linear layer.
    """

    foreign: str
    ours: tuple[str, ...]
    transposed: bool = False
    convolution: bool = False

    def split(self, tensor: "AnyTensor") -> "list[tuple[str, AnyTensor]]":
        """Our tensors by name, as views of the foreign one."""
        if self.transposed:
            tensor = tensor.T
        if self.convolution and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        if len(self.ours) == 1:
            return [(self.ours[0], tensor)]
        return list(zip(self.ours, tensor.chunk(len(self.ours)), strict=True))

    def split_shape(self, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """The shapes of `split`, without data."""
        if self.transposed:
            shape = shape[::-1]
        if self.convolution and len(shape) == 4 and shape[2:] == (1, 1):
            shape = shape[:2]
        if len(self.ours) > 1:
            shape = (shape[0] // len(self.ours), *shape[1:])
        return [(name, shape) for name in self.ours]

    def join(self, tensors: "list[AnyTensor]") -> "AnyTensor":
        """The foreign tensor, from ours in their order."""
        import torch  # noqa: PLC0415  slow to import

        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if self.convolution and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        return tensor.T.contiguous() if self.transposed else tensor
