"""Where a network's weights were read from, so that they can leave memory and be read again, bit for bit."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import no_type_check

import torch
from torch import nn

from undertow.checkpoints.files.pickled import is_pickle
from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.checkpoint import PartSource
from undertow.checkpoints.read.loading import SCALE, LoadOptions, read_part
from undertow.shapes import AnyTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FileHome:
    """The part of a checkpoint that a network was read from. options: how it was read."""

    source: PartSource
    options: LoadOptions

    @property
    def is_there(self) -> bool:
        """Whether the tensors can be read again: those of a pickle were in a temporary file."""
        return not is_pickle(self.source.weights.path) and all(
            file.path.is_file() for file in self.source.weights.files
        )

    @property
    def names(self) -> list[str]:
        """What `read` gives, by our names."""
        found = [name for mapping in self.source.mappings.values() for name in mapping.ours]
        return [*found, *(f"{layer}.{SCALE}" for layer in self.options.quantized)]

    def keep(self, name: str, tensor: AnyTensor) -> bool:
        """A file keeps what it holds, and takes nothing."""
        return False

    def read(self, names: Collection[str], *, mapped: bool = False) -> dict[str, AnyTensor]:
        """These tensors, by our names, as they were read at first. mapped: to be looked at only, as views of the file
        where that is possible. Errors: `CorruptFile`, also for a file that changed since then; `CheckpointError`."""
        options = replace(self.options, validate=False, mmap=mapped or self.options.mmap)
        return read_part(self.source, options, Health(), only=names)


def let_go(network: nn.Module, device: torch.device | str | None = None) -> None:
    """Puts stand-ins in the place of all weights of a network, on the device where it will compute."""
    for parameter in network.parameters():
        parameter.data = stand_in(parameter, device)
    network.to(device)


def stand_in(weight: AnyTensor, device: torch.device | str | None = None) -> AnyTensor:
    """A tensor of the same shape and type that takes no memory. Every number is NaN, so that nothing can compute with
    it unnoticed (of integers 0, whose scales are NaN then); a single number stays what it is."""
    where = weight.device if device is None else device
    if weight.numel() <= 1:
        return weight.to(where)
    number = float("nan") if weight.is_floating_point() else 0
    return torch.full((1,) * weight.ndim, number, dtype=weight.dtype, device=where).expand(weight.shape)


@no_type_check  # asked of all weights again and again while layers stream
def is_stand_in(weight: AnyTensor) -> bool:
    return weight.untyped_storage().nbytes() < weight.nbytes
