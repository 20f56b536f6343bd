"""How many rows share a forward."""

from dataclasses import dataclass

from torch import Tensor

from undertow.doors import checked_record
from undertow.errors import InvalidInput
from undertow.unet.runner import EAGER, Runner

CELLS_AT_ONCE = {"cpu": 8192}
CELLS_ON_ACCELERATORS = 65536
"""Latent cells that one forward computes by default: a batch of 2 rows of 512x512 pixels on a CPU, where larger ones
gain nothing (benchmarks/batching.py), 16 on an accelerator, and many more of small pictures."""


@checked_record
@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How many rows share a forward.

    rows: the most rows of a forward; `None` decides by the size of the picture. padded_to: every forward computes
    exactly this many rows, so that a picture is bit-equal whatever shares its batches: eagerly, by a runner whose bits
    depend on when a graph was made. Errors: `InvalidInput`.
    """

    rows: int | None = None
    padded_to: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "padded_to"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(name, value, "at least 1")
        if self.rows is not None and self.padded_to is not None and self.rows > self.padded_to:
            raise InvalidInput("rows", self.rows, f"at most padded_to = {self.padded_to}")

    def runner(self, runner: Runner) -> Runner:
        """What evaluates such forwards, in place of this one."""
        return runner if self.padded_to is None or runner.capabilities.repeatable else EAGER

    def most_rows(self, latents: Tensor) -> int:
        """The most rows of a forward over such latents."""
        return self.rows_over(latents.shape[2] * latents.shape[3], latents.device.type)

    def rows_over(self, cells: int, device: str) -> int:
        """The most rows of a forward over so many latent cells, on a kind of device."""
        if self.padded_to is not None:
            return self.padded_to if self.rows is None else self.rows
        if self.rows is not None:
            return self.rows
        return max(2, CELLS_AT_ONCE.get(device, CELLS_ON_ACCELERATORS) // cells)
