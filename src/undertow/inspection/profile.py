"""Where the time and the memory of a request go: stage by stage, layer by layer, against what the machine can do."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from undertow.adapters.manager import AdapterManager
from undertow.engine.engine import Engine
from undertow.engine.events import WorkEvent, WorkKind
from undertow.engine.forward import forward
from undertow.engine.probing import OwnForwards
from undertow.engine.report import Report
from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.inspection.flops import CountedFlops
from undertow.inspection.probe import every_row
from undertow.memory.monitor import Guard, Tracker, memory_of
from undertow.nn.attention import AttentionProjections
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

PEAK_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 4096}
"""Sides of the square matrices whose product tells what a device reaches."""

PEAK_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """A layer of `UNetConfig.layer_names()` in one forward. level: 0 is the highest resolution, -1 what has none.
    seconds: mean over all forwards; attention_s: of them in attention. flops: multiplications and additions, two
    for each pair. memory_bytes: the most that tensors took meanwhile, beyond what was held when the layer began.
    weight_bytes: of its parameters."""

    name: str
    level: int
    seconds: float
    attention_s: float
    flops: int
    memory_bytes: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """A unit of work, in seconds since the request began. memory_bytes: of the process, or of the CUDA device, at its
    end; `None` where nobody tells."""

    kind: WorkKind
    begin: float
    end: float
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a request took. layers: in the order of the network. forward_s: mean of the forwards, of `rows` rows each,
    with those that they were filled up with.
    peak_flops: what a matrix product reaches in the same process and type, in operations per second. timeline: of the
    work. report: of the request."""

    layers: tuple[LayerProfile, ...]
    forward_s: float
    forwards: int
    rows: int
    peak_flops: float
    timeline: tuple[Span, ...]
    report: Report = field(repr=False)

    @property
    def flops(self) -> int:
        """Of one forward."""
        return sum(layer.flops for layer in self.layers)

    @property
    def reached(self) -> float:
        """Share of `peak_flops` that forwards reach."""
        return self.flops / self.forward_s / self.peak_flops if self.forward_s else 0.0

    @property
    def attention_share(self) -> float:
        """Of a forward's time that is spent in attention: projections and kernel."""
        return sum(layer.attention_s for layer in self.layers) / self.forward_s if self.forward_s else 0.0

    @property
    def covered(self) -> float:
        """Share of a forward's time that is in its layers; the rest joins them."""
        return sum(layer.seconds for layer in self.layers) / self.forward_s if self.forward_s else 0.0

    def by_level(self) -> dict[int, float]:
        """Seconds of a forward at each resolution."""
        found: dict[int, float] = {}
        for layer in self.layers:
            found[layer.level] = found.get(layer.level, 0.0) + layer.seconds
        return dict(sorted(found.items()))

    def slowest(self, count: int) -> list[LayerProfile]:
        """The layers that take most time, most first."""
        return sorted(self.layers, key=lambda layer: -layer.seconds)[:count]

    def to_json(self) -> dict[str, Any]:
        """All of it but the request, as JSON has it."""
        shares = {name: getattr(self, name) for name in ("flops", "reached", "attention_share", "covered")}
        plain = {name: getattr(self, name) for name in ("forward_s", "forwards", "rows", "peak_flops")}
        memory = self.report.memory
        return {
            **plain,
            **shares,
            "seconds": dict(self.report.seconds),
            "by_level": {str(level): seconds for level, seconds in self.by_level().items()},
            "memory": {"forecast_bytes": memory.forecast_bytes, "peak_bytes": memory.peak_bytes, **memory.peaks},
            "layers": [asdict(layer) for layer in self.layers],
            "timeline": [asdict(span) for span in self.timeline],
        }


@dataclass(eq=False)
class LayerTimes(OwnForwards):
    """A forward probe that measures the seconds of layers and of attention, and keeps the rows of the first forward
    that it sees. A forward that raises is tried again in parts, and is not counted. concerns: whether a row is one of
    those that are profiled."""

    unet: UNet
    concerns: Callable[[Origin], bool] = every_row
    seconds: dict[str, list[float]] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    requests: set[int] = field(default_factory=set)
    """Their numbers in the engine."""

    def wants(self, rows: Sequence[Row]) -> bool:
        return rows[0].unet is self.unet and any(self.concerns(row.origin) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        taken: list[tuple[str, float]] = []

        def end(name: str, begun: float) -> None:
            taken.append((name, _now(unet.device) - begun))

        with _around(unet, self._names, lambda name: _now(unet.device), end):
            yield
        self.rows = self.rows or rows
        self.requests |= {row.origin.request for row in rows if self.concerns(row.origin)}
        for name, seconds in taken:
            self.seconds.setdefault(name, []).append(seconds)

    @cached_property
    def _names(self) -> Sequence[str]:
        return ("", *self.unet.config.layer_names(), *_attention(self.unet))


class Profiler:
    """Watches an engine while requests are drawn, and says afterwards what they took. rows: which are profiled; whoever
    shares their forwards makes them longer.

        with Profiler(service.engine) as profiler:
            result = service.generate("a red apple")
        print(profiler.profile(result.report).attention_share)

    The layers are timed by hooks, so that forwards run eagerly; the pictures are the same. Errors of `profile`:
    `InvalidInput` where nothing was drawn meanwhile.
    """

    def __init__(self, engine: Engine, *, rows: Callable[[Origin], bool] = every_row):
        self._engine = engine
        self._times = LayerTimes(engine.model.require_unet(), rows)
        self._memory = memory_of(engine.model.require_unet().device)
        self._spans: list[tuple[Sequence[int], Span]] = []
        self._began = 0.0
        self._computed = 0

    def __enter__(self) -> "Profiler":
        self._began = time.perf_counter()
        self._engine.probes.append(self._times)
        self._engine.watchers.append(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.probes.remove(self._times)
        self._engine.watchers.remove(self._watch)

    @property
    def rows(self) -> Sequence[Row]:
        """Of the first forward that was watched."""
        return self._times.rows

    def _watch(self, event: WorkEvent) -> None:
        if self._times.rows and event.kind == "denoise":
            self._computed = self._computed or event.computed_rows
        end = time.perf_counter() - self._began
        span = Span(kind=event.kind, begin=end - event.seconds, end=end, memory_bytes=self._memory.in_use())
        self._spans.append((event.requests, span))

    def profile(self, report: Report) -> Profile:
        """What was drawn meanwhile. report: of its last request. Runs one forward more, which is counted in operations
        and bytes, and a few matrix products."""
        rows, seconds = self.rows, self._times.seconds
        if not rows:
            raise InvalidInput("profile", "nothing", "a request that was drawn while the profiler was open")
        with self._engine.paused():
            self._engine.memory.restore(rows[0].unet)  # which may have left memory for a budget
            counted = count_forward(rows, self._engine.adapters, self._computed if self._computed > len(rows) else None)
            peak = matmul_flops(rows[0].unet.device, rows[0].latents.dtype)
        return Profile(
            layers=_layers(rows[0].unet, seconds, counted),
            forward_s=fmean(seconds[""]),
            forwards=len(seconds[""]),
            rows=max(self._computed, len(rows)),
            peak_flops=peak,
            timeline=tuple(span for numbers, span in self._spans if self._times.requests & set(numbers)),
            report=report,
        )


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What one layer does in one forward."""

    flops: int = 0
    memory_bytes: int = 0


@torch.inference_mode()
def count_forward(
    rows: Sequence[Row], manager: AdapterManager | None = None, padded_to: int | None = None
) -> Mapping[str, Counted]:
    """Operations and bytes of every layer, by one forward of these rows that is counted. padded_to: rows that it is
    filled up to."""
    unet, tracker, found = rows[0].unet, Tracker(), dict[str, Counted]()

    def begin(name: str) -> tuple[int, int, int]:  # noqa: ARG001
        before, tracker.peak_bytes = tracker.peak_bytes, tracker.live_bytes
        return flops.total, tracker.live_bytes, before

    def end(name: str, begun: tuple[int, int, int]) -> None:
        operations, live, before = begun
        found[name] = Counted(flops=flops.total - operations, memory_bytes=tracker.peak_bytes - live)
        tracker.peak_bytes = max(before, tracker.peak_bytes)

    with Guard(tracker), CountedFlops() as flops, _around(unet, unet.config.layer_names(), begin, end):
        forward(rows, manager, padded_to)
    return found


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the product of two large square matrices, the best of a few."""
    side = PEAK_SIDE.get(device.type, 1024)
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(PEAK_TRIES):
        begun = _now(device)
        _ = one @ other
        best = min(best, _now(device) - begun)
    return 2 * side**3 / best


def level_of(config: UNetConfig, layer: str) -> int:
    """The resolution at which a layer computes: 0 is the highest, -1 for what has none."""
    parts, last = layer.split("."), len(config.levels) - 1
    match parts[0]:
        case "down_blocks":
            return int(parts[1])
        case "up_blocks":
            return last - int(parts[1])
        case "mid_block":
            return last
        case "conv_in" | "conv_out" | "conv_norm_out":
            return 0
        case _:
            return -1


def _layers(
    unet: UNet, seconds: Mapping[str, Sequence[float]], counted: Mapping[str, Counted]
) -> tuple[LayerProfile, ...]:
    attention = _attention(unet)
    return tuple(
        LayerProfile(
            name=name,
            level=level_of(unet.config, name),
            seconds=fmean(seconds[name]),
            attention_s=sum(fmean(seconds[one]) for one in attention if one.startswith(f"{name}.") or one == name),
            flops=counted[name].flops,
            memory_bytes=counted[name].memory_bytes,
            weight_bytes=sum(weight.nbytes for weight in unet.get_submodule(name).parameters()),
        )
        for name in unet.config.layer_names()
        if name in seconds and name in counted
    )


def _attention(unet: UNet) -> list[str]:
    return [name for name, module in unet.named_modules() if isinstance(module, AttentionProjections)]


@contextmanager
def _around(
    unet: nn.Module, names: Sequence[str], begin: Callable[[str], Any], end: Callable[[str, Any], None]
) -> Generator[None]:
    """Calls `begin` before each module and `end` behind it, with what `begin` returned. Calls may be nested."""
    begun: dict[str, list[Any]] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:  # noqa: ARG001
            begun.setdefault(name, []).append(begin(name))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:  # noqa: ARG001
            end(name, begun[name].pop())

        return hook

    handles = []
    for name in dict.fromkeys(names):
        module = unet.get_submodule(name)
        handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
