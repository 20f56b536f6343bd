"""Records of what passes modules, as a forward runs: shapes, statistics and time, for the rows that are asked for."""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from undertow.engine.probing import OwnForwards
from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.inspection.probe import Side, every_row
from undertow.inspection.records import LayerStatistics, TensorRecord, numbers_of
from undertow.inspection.sites import VAE, concerns_forward, named, of_part, sites_in
from undertow.unet.unet import UNet

KEPT = 100_000
"""Records that are kept, the newest; statistics count all."""

SIDES: tuple[Side, ...] = ("input", "output")


def untold(record: TensorRecord) -> None:
    """Nobody is told."""
    del record


@dataclass(kw_only=True, eq=False)
class Recorder(OwnForwards):
    """Records what passes modules; for `Engine.probes`, or the probes of a request. Of a row whose numbers are not
    finite it records these, not those of its second evaluation.

    patterns: of modules, as in `ModuleProbe`; "*" is all. sides: which are recorded. every: records steps 0, every,
    2 every, ... rows: which concern it. moments: mean and standard deviation as well, which take most of the time.
    told: called with each record as it comes. `records` keeps the newest, `statistics` add all up. Errors:
    `InvalidInput` for an `every` below 1.
    """

    patterns: tuple[str, ...] = ("*",)
    sides: tuple[Side, ...] = SIDES
    every: int = 1
    rows: Callable[[Origin], bool] = every_row
    moments: bool = True
    told: Callable[[TensorRecord], None] = untold
    records: deque[TensorRecord] = field(default_factory=lambda: deque(maxlen=KEPT))
    statistics: dict[tuple[str, Side], LayerStatistics] = field(default_factory=dict)
    own_s: float = field(default=0.0, init=False)
    """Seconds spent in recording, which are no module's."""
    _decoded: Counter[tuple[str, Origin]] = field(default_factory=Counter, init=False, repr=False)
    """Of a picture's decoding, the parts that a step has computed."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InvalidInput("every", self.every, "1 or more", "1 records every step, 2 every second one")

    def wants(self, rows: Sequence[Row]) -> bool:
        return concerns_forward(self.patterns, rows) and any(self.concerns(row.origin) for row in rows)

    def concerns(self, origin: Origin) -> bool:
        """Whether a row is recorded."""
        return origin.step % self.every == 0 and self.rows(origin)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        """Errors: `InvalidInput` for a pattern that matches no module."""
        with ExitStack() as until:
            for name, module, own in sites_in(rows, self.patterns):
                self._watch(name, module, [row.origin for row in own], until)
            yield

    def wants_part(self, part: str, origin: Origin) -> bool:
        return bool(of_part(self.patterns, part)) and self.rows(origin)

    @contextmanager
    def inside(self, part: str, network: nn.Module, origin: Origin) -> Generator[None]:
        """As `engine.probing.PartProbe`: every row of the texts' chunks is the request's."""
        with ExitStack() as until:
            for name, module in named(network, of_part(self.patterns, part), part):
                self._watch(name, module, origin, until)
            yield

    def sees(self, name: str, kind: str, origin: Origin, output: Tensor) -> None:
        """As `engine.probing.PartProbe`."""
        if "output" in self.sides and any(fnmatchcase(name, one) for one in of_part(self.patterns, VAE)):
            call = self._decoded[name, origin]
            self._decoded[name, origin] += 1
            self.take(record_of(name, kind, "output", output, origin, call, moments=self.moments))

    def _watch(self, name: str, module: nn.Module, origins: Sequence[Origin] | Origin, until: ExitStack) -> None:
        watch = _Watched(self, name, module, origins)
        until.callback(module.register_forward_pre_hook(watch.before).remove)
        until.callback(module.register_forward_hook(watch.after).remove)

    def take(self, record: TensorRecord) -> None:
        """Counts a record, and tells whoever listens."""
        key = (record.module, record.side)
        if key not in self.statistics:
            self.statistics[key] = LayerStatistics(module=record.module, kind=record.kind, side=record.side)
        self.statistics[key].add(record)
        self.records.append(record)
        self.told(record)


class _Watched:
    """The hooks of one module during one forward. origins: of its rows, or of all of them."""

    def __init__(self, recorder: Recorder, name: str, module: nn.Module, origins: Sequence[Origin] | Origin):
        self._recorder, self._name, self._origins = recorder, name, origins
        self._kind = type(module).__name__
        self._calls = {side: iter(range(10**9)) for side in SIDES}
        self._started: list[tuple[float, float]] = []

    def before(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        del module
        if "input" in self._recorder.sides and inputs:
            self._see("input", inputs[0], None)
        self._started.append((_now(inputs[0] if inputs else None), self._recorder.own_s))

    def after(self, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        del module, inputs
        started, own = self._started.pop()
        seconds = _now(output) - started - (self._recorder.own_s - own)
        if "output" in self._recorder.sides:
            self._see("output", output, seconds)

    def _see(self, side: Side, value: object, seconds: float | None) -> None:
        start = time.perf_counter()
        tensor = first_tensor(value)
        call = next(self._calls[side])
        if tensor is not None and tensor.ndim > 0:
            origins = [self._origins] * len(tensor) if isinstance(self._origins, Origin) else self._origins
            part = None if seconds is None else seconds / len(origins)
            # A tensor of which the batch shares one row is nobody's alone.
            for index, origin in enumerate(origins if tensor.shape[0] >= len(origins) else ()):
                if self._recorder.concerns(origin):
                    row = tensor[index : index + 1]
                    moments = self._recorder.moments
                    record = record_of(self._name, self._kind, side, row, origin, call, moments=moments, seconds=part)
                    self._recorder.take(record)
        self._recorder.own_s += time.perf_counter() - start


def record_of(
    module: str,
    kind: str,
    side: Side,
    row: Tensor,
    origin: Origin,
    call: int,
    *,
    moments: bool,
    seconds: float | None = None,
) -> TensorRecord:
    """What is noted of a row's tensor."""
    found = numbers_of(row, moments=moments)
    return TensorRecord(
        module=module,
        kind=kind,
        side=side,
        origin=origin,
        call=call,
        shape=tuple(row.shape),
        dtype=str(row.dtype).removeprefix("torch."),
        low=found.low,
        high=found.high,
        mean=found.mean,
        std=found.std,
        nan=found.nan,
        inf=found.inf,
        seconds=seconds,
    )


def first_tensor(value: object) -> Tensor | None:
    """The tensor of floating-point numbers that a module passes on: itself, the first of several (an encoder level's
    hidden activations before its skip connections), or a U-Net's prediction."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, tuple) and value:
        return first_tensor(value[0])
    prediction = getattr(value, "prediction", None)
    return prediction if isinstance(prediction, Tensor) else None


def _now(value: object) -> float:
    """The time, after all work on a device that queues it."""
    tensor = first_tensor(value)
    if tensor is not None and tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
