"""Where the options of `undertow adapters` and `bench` arrive."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.cli.options.arrival import ABSENT, LOADED, Boundary, Command, case
from tests.embedded import FACTOR
from undertow import Adapter
from undertow.adapters.stacking.decisions import Decisions
from undertow.engine.request import GenerationRequest
from undertow.inspection.impact import Impact, Overhead
from undertow.unet.backend_measurements import BackendTiming, Forward, MeasuredForward
from undertow.unet.config import UNetConfig

FILES = ("a.safetensors@0.5", "b.safetensors=photo.png")
A, B = Adapter("a.safetensors", scale=0.5), Adapter("b.safetensors", image=("photo.png",))


def lay_out() -> None:
    """The files that are named, since one that is not there is refused before anything is loaded."""
    for name in ("a.safetensors", "b.safetensors"):
        Path(name).touch()
    for name in ("photo.png", "old.png"):
        Image.new("RGB", (6, 4)).save(name)


def explaining(at: Boundary) -> None:
    lay_out()

    def summarize(adapters: tuple[Adapter, ...]) -> tuple[()]:
        at.arrived["summarize.adapters"] = adapters
        return ()

    targets = SimpleNamespace(targets=SimpleNamespace(family="SD"))
    manager = SimpleNamespace(summarize=summarize, kind=lambda _: targets, unet="the U-Net")
    at.stand_in("undertow.loading.load", SimpleNamespace(adapters=manager))
    decisions = Decisions(kept=(), disabled=(), layers={}, conflicts=(), notes=())
    at.stand_in("undertow.adapters.stacking.decisions.decide", decisions, unnoted=("summaries",), apart=("stack",))
    for found in ("relative_sizes", "pairwise_cosines"):
        at.patch.setattr(f"undertow.inspection.conflict_figure.{found}", lambda *_: None)
    at.stand_in("undertow.inspection.conflict_figure.save_figure", unnoted=("sizes", "cosines"))


EXPLAIN = Command(
    verb=("adapters", "explain"),
    arguments={"files": FILES},
    boundary=explaining,
    arrives={
        **LOADED,
        "load.source": "emoji",
        "summarize.adapters": (A, B),
        "stack.adapters": (A, B),
        "stack.strategy": "sum",
        "stack.weights": None,
        "stack.density": 0.2,
        "stack.budget_bytes": None,
        "stack.off": frozenset(),
        "files": [],
    },
    cases=(
        case("--model", "mine", load__source="mine"),
        *(
            case("--strategy", name, stack__strategy=name)
            for name in ("normalised", "weighted", "ties", "orthogonal", "priority")
        ),
        case("--priority", "b=2", "--priority", "a=-1", **{
            place: (Adapter("b.safetensors", image=("photo.png",), priority=2),
                    Adapter("a.safetensors", scale=0.5, priority=-1))
            for place in ("summarize__adapters", "stack__adapters")
        }),
        case("--strategy", "weighted", "--weight", "a=0.3", stack__strategy="weighted", stack__weights={"a": 0.3}),
        case("--density", "0.6", stack__density=0.6),
        case("--budget", "1.5MiB", stack__budget_bytes=3 * 2**19),
        case("--budget", "much", refused="--budget is 'much', expected an amount of memory; such as 6GB"),
        case("--figure", "map.txt", refused="a file that ends in .png"),
        case("--figure", "photo.png", refused="--figure is 'photo.png', expected a file that is not there yet"),
        case("--figure", "old.png", "--overwrite", save_figure__path=Path("old.png"),
             save_figure__title="a and b in emoji"),
        case("--figure", "map.png", save_figure__path=Path("map.png"), save_figure__title="a and b in emoji"),
    ),
)  # fmt: skip


def probing(at: Boundary) -> None:
    lay_out()

    service = SimpleNamespace(model="the model", adapters="the manager")
    at.stand_in("undertow.loading.load", service)

    def probe(model: Any, manager: Any, request: GenerationRequest) -> str:
        at.arrived |= {"probe.model": model, "probe.manager": manager, "probe.request": request}
        return "the probe"

    def impact(probe: str, adapters: list[Adapter]) -> Impact:
        at.arrived.setdefault("impacts of", []).append([one.title for one in adapters])
        return Impact(names=tuple(one.title for one in adapters), prediction=0.5, layers={})

    def overhead(probe: str, adapters: list[Adapter], repeats: int) -> Overhead:
        at.arrived["repeats"] = repeats
        return Overhead(without_s=1.0, with_s=1.0, placing_s=0.0)

    at.patch.setattr("undertow.inspection.noisy_picture.NoisyPicture", SimpleNamespace(draw=probe))
    at.patch.setattr("undertow.inspection.impact.measure_impact", impact)
    at.patch.setattr("undertow.inspection.impact.measure_overhead", overhead)
    at.stand_in("undertow.cli.adapter_tables.print_impacts", unnoted=("console", "impacts", "overheads"))


def asked(**other: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "red apple on white background", "steps": 12, "seed": 0} | other)


IMPACT = Command(
    verb=("adapters", "impact"),
    arguments={"files": FILES},
    boundary=probing,
    arrives={
        **LOADED,
        "load.source": "emoji",
        "probe.model": "the model",
        "probe.manager": "the manager",
        "probe.request": asked(),
        "impacts of": [["a"], ["b"], ["a", "b"]],
        "repeats": 7,
        "print_impacts.layers": 3,
        "files": [],
    },
    cases=(
        case("--model", "mine", load__source="mine"),
        case("--prompt", "a plum", probe__request=asked(prompt="a plum")),
        case("--steps", "4", probe__request=asked(steps=4)),
        case("--seed", "9", probe__request=asked(seed=9)),
        case("--layers", "2", print_impacts__layers=2),
        case("--repeats", "3", repeats=3),
    ),
)


def benching(at: Boundary) -> None:
    at.stand_in("undertow.unet.attention_calls.attention_calls", {"a call": 1}, unnoted=("config",))
    at.stand_in("undertow.attention.measure.measure", [], unnoted=("inexact",))
    at.patch.setattr("undertow.cli.bench_attention._table", lambda *_: "")
    at.patch.setattr("undertow.attention.measurement.store", lambda _: at.arrived.update(kept=True))


BENCH_ATTENTION = Command(
    verb=("bench", "attention"),
    arguments={"model": "sd15"},
    boundary=benching,
    arrives={
        "attention_calls.height": 64,
        "attention_calls.width": 64,
        "attention_calls.rows": 2,
        "attention_calls.tokens": 77,
        "attention_calls.dtype": "float32",
        "measure.calls": {"a call": 1},
        "measure.device": "cpu",
        "measure.repeats": 5,
        "kept": True,
        "files": [],
    },
    cases=(
        case("--size", "768x512", attention_calls__width=96),
        case("--size", "770x512", refused="multiples of 8"),
        case("--precision", "bf16", attention_calls__dtype="bfloat16"),
        case("--rows", "4", attention_calls__rows=4),
        case("--tokens", "154", attention_calls__tokens=154),
        case("--repeats", "9", measure__repeats=9),
        case("--device", "meta", measure__device="meta"),
        case("--no-keep", kept=ABSENT),
        case("--no-keep", "--keep", "--rows", "4", attention_calls__rows=4),
    ),
)


def timing(at: Boundary) -> None:
    def load_unet(source: str, **options: Any) -> Any:
        at.arrived |= {"load.source": source, **{f"load.{name}": value for name, value in options.items()}}
        return SimpleNamespace(config=UNetConfig.cifar10(), dtype=torch.bfloat16)

    def measure(unet: Any, forward: Forward, backends: Any, *, repeats: int) -> MeasuredForward:
        at.arrived |= {"forward": (forward.rows, forward.height, forward.width, forward.tokens, forward.dtype)}
        at.arrived |= {"backends": backends, "repeats": repeats}
        eager = BackendTiming(seconds=1.0, first_seconds=1.0, error=0.0)
        return MeasuredForward(forward=forward, timings={"eager": eager}, refused={}, date="2026-11-29")

    at.patch.setattr("undertow.loading.load_unet", load_unet)
    at.patch.setattr("undertow.unet.measure_backends.measure_backends", measure)
    at.patch.setattr("undertow.unet.backend_measurements.store_backends", lambda _: at.arrived.update(kept=True))


BENCH_BACKENDS = Command(
    verb=("bench", "backends"),
    arguments={"model": "emoji"},
    boundary=timing,
    arrives={
        "load.source": "emoji",
        "load.dtype": torch.float32,
        "load.device": "cpu",
        "load.quantize": "none",
        "forward": (2, 16, 16, 77, "bfloat16"),
        "backends": ("eager", "packed", "openvino"),
        "repeats": 5,
        "kept": True,
        "files": [],
    },
    cases=(
        case("--size", "96x64", forward=(2, 64 // FACTOR, 96 // FACTOR, 77, "bfloat16")),
        case("--size", "66x64", refused=f"multiples of {FACTOR}"),
        case("--precision", "bf16", load__dtype=torch.bfloat16),
        case("--rows", "4", forward=(4, 16, 16, 77, "bfloat16")),
        case("--tokens", "154", forward=(2, 16, 16, 154, "bfloat16")),
        case("--repeats", "9", repeats=9),
        case("--device", "meta", load__device="meta"),
        case("--compile", backends=("eager", "packed", "openvino", "compile")),
        case("--no-keep", kept=ABSENT),
        case("--no-keep", "--keep", "--rows", "4", forward=(4, 16, 16, 77, "bfloat16")),
    ),
)
COMMANDS = (EXPLAIN, IMPACT, BENCH_ATTENTION, BENCH_BACKENDS)
