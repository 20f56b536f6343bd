"""The tensors of a file against those of the network that they are for: missing, unexpected, or of another shape."""

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from undertow.errors import ConfigError, KeyMismatch

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes of tensors by name."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """missing: what the file lacks. unexpected: what the network lacks. reshaped: names with both shapes, in words."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def require_none(self, path: str | Path) -> None:
        """Passes when there are none. Errors: `KeyMismatch` names `path` and lists them."""
        if self.missing or self.unexpected or self.reshaped:
            raise KeyMismatch(path, self.missing, self.unexpected, self.reshaped)


def compare_names(
    expected: Collection[str], found: Collection[str], *, written: Callable[[str], str] = str
) -> Differences:
    """The differences that names alone show, before any tensor is read. written: how a name is shown."""
    return Differences(
        missing=tuple(sorted(map(written, set(expected) - set(found)))),
        unexpected=tuple(sorted(map(written, set(found) - set(expected)))),
    )


def compare_shapes(
    expected: Shapes,
    found: Shapes,
    *,
    same: Callable[[Shape, Shape], bool] = operator.eq,
    written: Callable[[str], str] = str,
) -> Differences:
    """The differences between a network's tensors and a file's. same: whether two shapes count as equal."""
    reshaped = (
        f"{written(name)} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and not same(found[name], shape)
    )
    return replace(compare_names(expected.keys(), found.keys(), written=written), reshaped=tuple(reshaped))


def require_layers(path: str | Path, layers: int, tensors: int) -> None:
    """Refuses a config that describes more layers than its file has tensors, before such a network is built. Errors:
    `ConfigError`."""
    if layers > tensors:
        raise ConfigError(
            "layers", layers, f"is more than the {tensors} tensors of {path}: they belong to other models"
        )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shapes in a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def same_but_for_trailing_ones(one: Shape, other: Shape) -> bool:
    """Whether two shapes are equal when a 1x1 convolution counts as the linear layer with the same numbers."""
    return without_trailing_ones(one) == without_trailing_ones(other)


def without_trailing_ones(shape: Shape) -> Shape:
    """The shape of a 1x1 convolution as that of the linear layer with the same numbers."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
