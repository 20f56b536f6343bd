"""docs/results/memory.md, from what was measured and from the forecast."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib.memory_cases import CHOSEN, LARGE, TRAINED, Case, cases, float16_cases
from undertow.memory.families import family
from undertow.memory.forecast import PROCESS_BYTES, Forecast, StageForecast, component_bytes, forecast
from undertow.memory.machine import Machine
from undertow.memory.work import Work

KEPT = Path("docs/results/memory")
SEED, CASES = 18, 200
SIDES = (512, 768, 1024)
SAID = {512: (6, 8), 768: (13, 16), 1024: (24, 28)}
"""Source document 001's gigabytes by side: activations, and in total."""


def kept(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_page(page: Path) -> None:
    page.write_text("\n".join(_page()) + "\n")


def _page() -> Iterator[str]:
    yield "# Memory: forecast and measured\n"
    yield (
        "The forecast walks through the networks on stand-ins for tensors, of which only the size is known, and takes "
        "and gives back memory as the network does ([`undertow.memory.forecast`](../reference.md)). It needs no "
        "PyTorch, no weights and one to ten milliseconds. This page is written by `python -m benchmarks.memory`.\n"
    )
    yield from _allocator()
    yield from _large()
    yield from _training()
    yield from _process()
    yield from _cuda()
    yield from _document()
    yield from _precisions()
    yield from _components()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured on a machine. said: by which processor, with which torch, and when."""

    machine: Machine
    said: str
    rows: list[dict[str, Any]]


def _read(name: str) -> Iterator[Found]:
    """Of every family of processors that was measured."""
    for path in sorted(KEPT.glob(f"{name}-*.json"), reverse=True):
        found = json.loads(path.read_text())
        said = ", ".join((found["device"], f"torch {found['torch']}", "one thread", found["date"]))
        said += f", {found['note']}" if "note" in found else ""
        yield Found(machine=Machine(**found.get("machine", {})), said=said, rows=found["rows"])


def _allocator() -> Iterator[str]:
    yield "## Beside the allocator of a CPU\n"
    yield (
        f"{CASES} random cases (seed {SEED}): narrow networks with every structure of the published families, and "
        "in one of ten cases the published networks themselves; float32 and bfloat16, every kernel, LoRA in slots, "
        "ControlNets, reference pictures, long prompts, odd sizes. The allocator's peak is that of torch.profiler, "
        "which sees workspaces of kernels too; weights are not counted. Workspaces are those of the processor "
        "(`undertow.memory.workspaces`): of AVX-512 they follow rules, of AMX, for which oneDNN searches for its "
        "blocks, they are upper bounds.\n"
    )
    for found in _read("allocator"):
        yield from _beside(found, cases(SEED, CASES))
    for found in _read("float16"):
        yield (
            f"{len(found.rows)} of the cases in float16, which PyTorch computes on CPUs too, fast only where the "
            "processor has AVX-512 FP16:\n"
        )
        yield from _beside(found, float16_cases())
    yield (
        "Chunked layers, kernels in parts and one head at a time, T2I adapters, regions by attention, and "
        "ControlNets with the embedding of their hint are held to the allocator in the same way by "
        "`tests/memory/test_forecast.py`. FreeU and perturbed guidance (PAG, SEG) act away from the peak and take "
        "nothing there; the rows that guidance, composed prompts and regions ask for are counted. Of masks in "
        "attention, and of the `local-approximate` kernel, only bounds are known. Image encoders of IP-Adapters are "
        "held to the allocator by `tests/memory/test_forecast_of_adapters.py`. Of the copies that are kept of weights "
        "which LoRA are merged into only a bound is known: all transformers, or the whole U-Net for LoRA that change "
        "more.\n"
    )


def _beside(found: Found, drawn: Sequence[Case]) -> Iterator[str]:
    rows = _with_forecast(found.rows, drawn, _activations(found.machine))
    yield f"{found.said}:\n"
    yield "| stage | cases | below | mean | worst | more than 1 % above |"
    yield "|---|---|---|---|---|---|"
    for stage in sorted({row["stage"] for row in rows}):
        yield _summary(stage, [row for row in rows if row["stage"] == stage])
    yield _summary("all", rows)
    yield ""
    above = sorted((row for row in rows if _over(row) > 0.01), key=_over, reverse=True)
    if above:
        yield (
            "More than 1 % above are small ones alone, where a bound on a kernel's workspace weighs more than what is "
            "computed:\n"
        )
        yield from (f"- {_over(row):+.1%}, {_mib(row['measured'])} MiB: {row['case']}" for row in above)
        yield ""


def alone(case: Case, device: str, machine: Machine | None = None) -> int:
    """The forecast for a process, or on a GPU for tensors, that holds the networks of one stage alone."""
    machine = Machine(device=device) if machine is None else machine
    found = forecast(case.subject, replace(case.work, keep=()), machine)
    stage = found.stage(case.stage)
    return weights_alone(case) + stage.activation_bytes + (PROCESS_BYTES if device == "cpu" else 0)


def weights_alone(case: Case) -> int:
    """Of the network of a stage without those that work beside it."""
    work = replace(case.work, keep=())
    beside = {"denoise": "controlnet", "controlnet": "unet"}.get(case.stage, "")
    whole = forecast(case.subject, work, Machine()).stage(case.stage).weight_bytes
    return whole - component_bytes(case.subject, work).get(beside, 0) * bool(work.controlnets)


def _activations(machine: Machine) -> Callable[[Case], int]:
    return lambda case: forecast(case.subject, case.work, machine).stage(case.stage).activation_bytes


def _with_forecast(
    rows: Sequence[dict[str, Any]], drawn: Sequence[Case], expected: Callable[[Case], int]
) -> list[dict[str, Any]]:
    """The forecast of today beside what was measured."""
    by_title = {case.title: case for case in drawn}
    return [row | {"forecast": expected(by_title[row["case"]])} for row in rows]


def _summary(name: str, rows: Sequence[dict[str, Any]]) -> str:
    over = [_over(row) for row in rows]
    return (
        f"| {name} | {len(rows)} | {sum(one < 0 for one in over)} | {sum(over) / len(over):.3%} | {max(over):.2%} | "
        f"{sum(one > 0.01 for one in over)} |"
    )


def _over(row: dict[str, Any]) -> float:
    return row["forecast"] / row["measured"] - 1


def _large() -> Iterator[str]:
    for found in _read("large"):
        yield f"Published networks at ordinary sizes, in the same way; {found.said}:\n"
        yield from _table(_with_forecast(found.rows, LARGE, _activations(found.machine)))


def _training() -> Iterator[str]:
    yield "## Training steps\n"
    yield (
        "The backward pass is not walked: a training step is forecast as what the forward pass keeps and an upper "
        "bound of the gradients that come on top. That is never below, but up to a quarter above what is really "
        "taken. Whole networks and single blocks may be computed again.\n"
    )
    for found in _read("training"):
        yield f"{found.said}:\n"
        yield from _table(_with_forecast(found.rows, TRAINED, _activations(found.machine)))


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| case | measured MiB | forecast MiB | above |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {row['case']} | {_mib(row['measured'])} | {_mib(row['forecast'])} | {_over(row):+.2%} |"
    yield ""


def _process() -> Iterator[str]:
    yield "## The process\n"
    yield (
        "What the kernel kills for is the memory of the process. It is forecast as weights and activations plus "
        f"{PROCESS_BYTES >> 20} MiB for the interpreter, PyTorch's libraries, and what kernels and the allocator keep. "
        "That part is between 330 and 430 MiB, and was 470 MiB in one run of five of the largest decoding below, so "
        "that small models are forecast up to four tenths too high.\n"
    )
    for found in _read("process"):
        yield (
            f"Each in a fresh process that holds the stage's networks alone, beside `VmHWM` of Linux; {found.said}.\n"
        )
        yield from _table(_with_forecast(found.rows, CHOSEN, partial(alone, device="cpu", machine=found.machine)))


def _cuda() -> Iterator[str]:
    yield "## On a GPU\n"
    all_found = list(_read("cuda"))
    if not all_found:
        yield (
            "Not measured yet: `python -m benchmarks.cuda_memory` takes less than eight minutes on a GPU. Until then "
            "plans for CUDA allow 15 % for rounding and fragments, and for the VAE 2.3 times the tensors, as others' "
            "measurements show (`undertow.memory.calibration`); afterwards what was measured there counts.\n"
        )
        return
    for found in all_found:
        yield f"{found.said}, each case in a fresh process.\n"
        yield "| case | reserved MiB | allocated MiB | tensors, forecast MiB | reserved / forecast |"
        yield "|---|---|---|---|---|"
        for row in _with_forecast(found.rows, CHOSEN, partial(alone, device="cuda")):
            sizes = (row["measured"], row["allocated"], row["forecast"])
            yield f"| {row['case']} | {' | '.join(map(_mib, sizes))} | {row['measured'] / row['forecast']:.2f} |"
        yield ""


def _document() -> Iterator[str]:
    yield "## The table of source document 001\n"
    yield (
        "SD1.5, one picture with guidance (two rows). Activations of the U-Net by type and attention kernel, the "
        "largest activations of the whole pipeline, and everything with text encoder, U-Net and autoencoder in memory "
        "(fused attention); GiB.\n"
    )
    yield (
        "| pixels | type | fused | chunked | whole scores | pipeline's | in total | document: activations, total | "
        "document / fused |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for side in SIDES:
        for dtype in ("float16", "float32"):
            yield _document_row(side, dtype)
    yield ""
    yield from _measured_at_512()
    yield (
        f"The document's figures are too high for any stack of today, {_times(512):.0f} times at 512 pixels with fused "
        "attention in float16, and no single setting reproduces all three. "
        "They come nearest to attention that writes out its scores in float32, or to a forward in training, "
        "which keeps every activation for the backward pass. With fused attention, the peak of the U-Net is neither in "
        "attention nor in the bottleneck, but in the gated feed-forward layer of the highest resolution "
        f"(`{_hotspot(512)}`); weights are then most of the memory, and decoding, not the U-Net, is the peak of the "
        "activations.\n"
    )


def _document_row(side: int, dtype: str) -> str:
    fused = _sd15(side, dtype, "sdpa")
    kernels = [_sd15(side, dtype, kernel).stage("denoise").activation_bytes for kernel in ("sdpa", "chunked", "math")]
    largest = max(stage.activation_bytes for stage in fused.stages if stage.name != "encode")
    said = SAID[side] if dtype == "float16" else None
    document = " | " if said is None else f"{said[0]}, {said[1]} GB | {_times(side):.0f}"
    figures = [*kernels, largest, fused.peak_bytes]
    return f"| {side} | {dtype} | {' | '.join(f'{one / 2**30:.2f}' for one in figures)} | {document} |"


def _times(side: int) -> float:
    """How many times the activations of the document are those with fused attention in float16."""
    return SAID[side][0] * 10**9 / _sd15(side, "float16", "sdpa").stage("denoise").activation_bytes


def _measured_at_512() -> Iterator[str]:
    """What the allocator counted for the first row of the table, in the other type of half the size."""
    for found in _read("large"):
        for row in found.rows:
            if row["case"].startswith("sd15 denoise dtype=bfloat16 kernel=sdpa"):
                yield (
                    f"Measured at 512 pixels in bfloat16 with fused attention ({found.said}): "
                    f"{_mib(row['measured'])} MiB, the {SAID[512][0] * 10**9 / row['measured']:.0f}th part of the "
                    "document's.\n"
                )


def _precisions() -> Iterator[str]:
    yield "## Weights by precision\n"
    yield (
        "MiB of weights, counted. Undertow keeps weights in the first three types; int8 is a forecast, a byte for each "
        "number, to which a scale for every output of a layer would add less than 1 %: nothing here reads or computes "
        "it.\n"
    )
    yield "| model | network | float32 | float16 | bfloat16 | int8, forecast |"
    yield "|---|---|---|---|---|---|"
    for name in ("sd15", "sd21", "sdxl"):
        held = component_bytes(family(name), Work(dtype="float32"))
        for network, size in {**held, "in total": sum(held.values())}.items():
            columns = (size, size // 2, size // 2, size // 4)
            yield f"| {name} | {network} | {' | '.join(map(_mib, columns))} |"
    yield ""


def _components() -> Iterator[str]:
    yield "## Component by component\n"
    yield "The same U-Net at its peak, MiB in float16; the document: convolutions 4-8 GB, attention 2-4, skips 2-3.\n"
    stages = {
        (side, kernel): _sd15(side, "float16", kernel).stage("denoise") for side in SIDES for kernel in ("sdpa", "math")
    }
    names = sorted({name for stage in stages.values() for name in stage.by_component})
    yield f"| component | {' | '.join(f'{side}, {_NAMES[kernel]}' for side, kernel in stages)} |"
    yield f"|---|{'---|' * len(stages)}"
    for name in names:
        yield f"| {name} | {' | '.join(_mib(stage.by_component.get(name, 0)) for stage in stages.values())} |"
    yield f"| weights | {' | '.join(_weights(stage) for stage in stages.values())} |"
    yield f"| at | {' | '.join(f'`{stage.hotspot.module}`' for stage in stages.values())} |"
    yield ""


_NAMES = {"sdpa": "fused", "math": "whole scores"}


def _weights(stage: StageForecast) -> str:
    return _mib(stage.weight_bytes)


def _sd15(side: int, dtype: str, kernel: Any) -> Forecast:
    return forecast(family("sd15"), Work(size=(side, side), dtype=dtype, kernel=kernel), Machine())


def _hotspot(side: int) -> str:
    return _sd15(side, "float16", "sdpa").stage("denoise").hotspot.module


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
