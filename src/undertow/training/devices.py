"""One device or several, by Accelerate: `accelerate launch -m undertow train ...` starts a process per device.

Only what concerns several processes is taken from Accelerate; precision, clipping and checkpoints are plain torch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undertow.errors import ConfigError
from undertow.extras import optional_package
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The processes that train together, seen from one of them."""

    accelerator: Any = None
    """`accelerate.Accelerator`, whose package is an extra; `None` for one process alone, on the device of its
    module."""

    @classmethod
    def find(cls, *, batch_size: int, cpu: bool = False) -> "Devices":
        """Returns the devices that the launcher set up, or a single one. cpu: do not use accelerators.

        Errors: `MissingDependency`; `ConfigError` for a batch that cannot be split evenly.
        """
        with optional_package("accelerate", "train"):
            from accelerate import Accelerator  # noqa: PLC0415  an extra, and slow to import
        devices = cls(accelerator=Accelerator(cpu=cpu))
        if batch_size % devices.count:
            raise ConfigError("batch_size", batch_size, f"must be a multiple of {devices.count}, the number of devices")
        return devices

    @property
    def count(self) -> int:
        return 1 if self.accelerator is None else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        return 0 if self.accelerator is None else self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def distributed(self, unet: UNet) -> nn.Module:
        """Wraps `unet`, which is already on this device, so that gradients are averaged over all processes."""
        return unet if self.count == 1 else self.accelerator.prepare_model(unet, device_placement=False)

    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean over all processes."""
        return value if self.count == 1 else self.accelerator.reduce(value, reduction="mean")

    def any(self, said: bool, device: torch.device) -> bool:
        """Whether any of the processes says so. device: this process's."""
        return said if self.count == 1 else bool(self.mean(torch.tensor(float(said), device=device)) > 0)

    def wait(self) -> None:
        """Waits until all processes have arrived here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


ALONE = Devices()
"""A single process, without Accelerate."""
