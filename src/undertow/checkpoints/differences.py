"""How the tensors of a file differ from those of the network that they are for."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from undertow.errors import KeyMismatch


def check_keys(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Every tensor present, none left over, shapes equal. Errors: `KeyMismatch` lists the differences."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    reshaped = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        raise KeyMismatch(path, missing, unexpected, reshaped)
