"""What was measured of the kernels on this machine, and where it is kept.

One file of the cache folder for each device, version of PyTorch and number of threads: a measurement says nothing about
any other. Only loading a model reads it; a network that is built by hand decides without.
"""

import math
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from undertow.attention.kernel import Requirements
from undertow.cache_folder import cache_folder, read_cached, write_cached

FORMAT = 1
"""Of the files. Those of another one are not read."""

NEAR = 2.0
"""A measurement stands for calls of up to this factor more or fewer queries, and keys."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The shape of an attention call. dtype: its name without "torch."."""

    rows: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.queries} x {self.keys}, {self.heads} heads {self.head_dim} wide"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a kernel took. seconds: of the fastest run. scratch_bytes: beside its inputs and its output. error: the
    largest relative error of a row, against attention in float64."""

    seconds: float
    scratch_bytes: int
    error: float


@dataclass(frozen=True, kw_only=True)
class MeasuredCall:
    """The kernels that computed a call correctly, and why the others did not count."""

    call: Call
    timings: Mapping[str, Timing]
    refused: Mapping[str, str]
    date: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a measurement is valid for. device: "cpu" or "cuda". name: of the processor or the GPU."""

    device: str
    name: str
    torch_version: str
    threads: int

    @classmethod
    def here(cls, device: torch.device | str) -> "Machine":
        """This machine, with the threads that PyTorch uses now."""
        place = torch.device(device)
        name = torch.cuda.get_device_name(place) if place.type == "cuda" else _processor()
        threads = torch.get_num_threads() if place.type == "cpu" else 0
        return cls(device=place.type, name=name, torch_version=torch.__version__, threads=threads)

    @property
    def words(self) -> str:
        threads = f" {self.threads} threads" if self.threads else ""
        return f"{self.device} {self.name} torch {self.torch_version}{threads}"

    def file(self, folder: str = "attention") -> Path:
        """Where what was measured of it lies. folder: of the cache."""
        return cache_folder() / folder / f"{re.sub(r'[^a-z0-9.+]+', '-', self.words.lower())}.json"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """All that was measured on a machine."""

    machine: Machine
    calls: tuple[MeasuredCall, ...] = ()

    def near(self, wanted: Requirements) -> MeasuredCall | None:
        """The measured call that is most like this one: of its type and head width, and with numbers of queries and
        keys within a factor of `NEAR`; `None` where nothing is."""
        found = [(_distance(one.call, wanted), index) for index, one in enumerate(self.calls)]
        distance, index = min(found, default=(math.inf, 0))
        return None if distance == math.inf else self.calls[index]

    def with_calls(self, calls: tuple[MeasuredCall, ...]) -> "Measurements":
        """These, with those of the same shapes replaced."""
        new = {one.call for one in calls}
        return Measurements(machine=self.machine, calls=(*(one for one in self.calls if one.call not in new), *calls))


def _distance(call: Call, wanted: Requirements) -> float:
    if call.dtype != str(wanted.dtype).removeprefix("torch.") or call.head_dim != wanted.head_dim:
        return math.inf
    factors = [abs(math.log(a / b)) for a, b in ((call.queries, wanted.queries), (call.keys, wanted.keys))]
    if max(factors) > math.log(NEAR) + 1e-9:
        return math.inf
    rows = abs(math.log(call.rows * call.heads / (wanted.rows * wanted.heads)))
    return 10 * sum(factors) + rows


def stored_measurements(device: torch.device | str | None) -> Measurements | None:
    """What was measured on this machine; `None` where nothing was, or the file is damaged."""
    place = torch.device("cpu" if device is None else device)
    if place.type not in ("cpu", "cuda"):
        return None
    machine = Machine.here(place)
    content = read_cached(machine.file())
    if content.get("format") != FORMAT or content.get("machine") != asdict(machine):
        return None
    try:
        calls = tuple(_call_from_json(one) for one in content["calls"])
    except (KeyError, TypeError, AttributeError):
        return None
    return Measurements(machine=machine, calls=calls)


def store(measurements: Measurements) -> Path:
    """Writes all that is known of a machine; returns the file. Errors: `OSError`."""
    content = {
        "format": FORMAT,
        "machine": asdict(measurements.machine),
        "calls": [asdict(one) for one in measurements.calls],
    }
    write_cached(content, measurements.machine.file())
    return measurements.machine.file()


def _call_from_json(json: Mapping[str, Any]) -> MeasuredCall:
    return MeasuredCall(
        call=Call(**json["call"]),
        timings={name: Timing(**one) for name, one in json["timings"].items()},
        refused=dict(json["refused"]),
        date=json["date"],
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
