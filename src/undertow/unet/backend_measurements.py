"""What was measured of the backends on this machine, and where it is kept.

One file of the cache folder for each device, version of PyTorch and number of threads. Only loading a model with
`backend="auto"` reads it.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from undertow.attention.measurement import Machine
from undertow.cache_folder import read_cached, write_cached
from undertow.processor import features
from undertow.unet.config import UNetConfig

FORMAT = 1
"""Of the files. Those of another one are not read."""

NEAR = 4.0
"""A measurement stands for forwards of up to this factor more or fewer cells, over all rows."""

FOLDER = "backends"


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The shape of a forward. network: see `network_name`. height, width: of the latents, in cells. tokens: of the
    text. dtype: its name without "torch."."""

    network: str
    rows: int
    height: int
    width: int
    tokens: int
    dtype: str

    @classmethod
    def of(
        cls,
        config: UNetConfig,
        dtype: torch.dtype,
        *,
        rows: int = 2,
        size: tuple[int, int] | None = None,
        tokens: int = 77,
    ) -> "Forward":
        """One of a network, by default of a picture with guidance. size: (height, width) in cells; what the network was
        trained at when `None`."""
        height, width = (config.sample_size, config.sample_size) if size is None else size
        name = str(dtype).removeprefix("torch.")
        return cls(network=network_name(config), rows=rows, height=height, width=width, tokens=tokens, dtype=name)

    def __str__(self) -> str:
        rows = f"{self.rows} row{'' if self.rows == 1 else 's'}"
        return f"{rows} of {self.width}x{self.height} cells in {self.dtype}"

    @property
    def cells(self) -> int:
        return self.rows * self.height * self.width


@dataclass(frozen=True, kw_only=True)
class BackendTiming:
    """What a backend took. seconds: the median of a forward. first_seconds: of the first one, which may make what the
    others only use. error: relative, of its output against that of the eager network."""

    seconds: float
    first_seconds: float
    error: float


@dataclass(frozen=True, kw_only=True)
class MeasuredForward:
    """The backends that computed a forward correctly, and why the others did not count."""

    forward: Forward
    timings: Mapping[str, BackendTiming]
    refused: Mapping[str, str]
    date: str


@dataclass(frozen=True, kw_only=True)
class BackendMeasurements:
    """All that was measured on a machine."""

    machine: Machine
    forwards: tuple[MeasuredForward, ...] = ()

    def near(self, wanted: Forward) -> MeasuredForward | None:
        """The measured forward that is most like this one: of its network and type, with a number of cells within a
        factor of `NEAR`; `None` where nothing is."""
        found = [
            (abs(math.log(one.forward.cells / wanted.cells)), index)
            for index, one in enumerate(self.forwards)
            if (one.forward.network, one.forward.dtype) == (wanted.network, wanted.dtype)
        ]
        distance, index = min(found, default=(math.inf, 0))
        return None if distance > math.log(NEAR) + 1e-9 else self.forwards[index]

    def with_forward(self, measured: MeasuredForward) -> "BackendMeasurements":
        """These and one more, which replaces an earlier one of the same shapes."""
        others = (one for one in self.forwards if one.forward != measured.forward)
        return BackendMeasurements(machine=self.machine, forwards=(*others, measured))


def network_name(config: UNetConfig) -> str:
    """Eight digits that networks of one architecture share."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:8]


def stored_backends(device: torch.device | str) -> BackendMeasurements | None:
    """What was measured on this machine; `None` where nothing was, or the file is damaged."""
    if torch.device(device).type not in ("cpu", "cuda"):
        return None
    machine = Machine.here(device)
    content = read_cached(machine.file(FOLDER))
    if content.get("format") != FORMAT or content.get("machine") != asdict(machine):
        return None
    if content.get("features") != features():
        return None
    try:
        forwards = tuple(_from_json(one) for one in content["forwards"])
    except (KeyError, TypeError, AttributeError):
        return None
    return BackendMeasurements(machine=machine, forwards=forwards)


def store_backends(measurements: BackendMeasurements) -> Path:
    """Writes all that is known of a machine; returns the file. Errors: `OSError`."""
    file = measurements.machine.file(FOLDER)
    content = {
        "format": FORMAT,
        "machine": asdict(measurements.machine),
        "features": features(),
        "forwards": [asdict(one) for one in measurements.forwards],
    }
    write_cached(content, file)
    return file


def _from_json(json: Mapping[str, Any]) -> MeasuredForward:
    return MeasuredForward(
        forward=Forward(**json["forward"]),
        timings={name: BackendTiming(**one) for name, one in json["timings"].items()},
        refused=dict(json["refused"]),
        date=json["date"],
    )
